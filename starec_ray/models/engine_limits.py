"""What an engine of a model can hold, told before one starts."""

import math
from typing import Any

from starec_ray.cluster.memory import GIB
from starec_ray.errors import ConfigError
from starec_ray.models.resolve import VALUE_BYTES


def check_engine(config: Any, model_path: str, dtype: str) -> None:
    """Checks what a `STARecConfig` asks of its engines.

    Args:
        model_path: of the model's folder, or a Hugging Face id.
        dtype: float32 or bfloat16.

    Raises:
        ConfigError: if `max_model_len` is longer than the model's own window, or, on CPUs, takes
            more of the KV cache than there is.
        OSError: if the model's config can't be fetched.
    """
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(model_path).get_text_config()
    window = getattr(model, "max_position_embeddings", None)
    rope = getattr(model, "rope_parameters", None) or {}
    is_stretched = rope.get("rope_type", "default") != "default"
    if window and config.max_model_len > window and not is_stretched:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}; the window of {config.model_name} has "
            f"{window} tokens."
        )
    if config.num_gpus_per_env_runner or getattr(model, "sliding_window", None):
        return
    values = config.max_model_len * _kv_values(model, config.tensor_parallel_size)
    needed = values * VALUE_BYTES[dtype]
    if needed > config.kv_cache_gib * GIB:
        raise ConfigError(
            f"kv_cache_gib is {config.kv_cache_gib:g}; a sequence of {config.max_model_len} tokens "
            f"(max_model_len) takes {math.ceil(needed / GIB * 1000) / 1000:g} GiB, and several are "
            "sampled at a time."
        )


def _kv_values(model: Any, parts: int) -> int:
    """Keys and values of a token in all layers, in each of an engine's parts."""
    heads = model.num_attention_heads
    kv_heads = getattr(model, "num_key_value_heads", None) or heads
    head_dim = getattr(model, "head_dim", None) or model.hidden_size // heads
    return 2 * model.num_hidden_layers * max(1, kv_heads // parts) * head_dim

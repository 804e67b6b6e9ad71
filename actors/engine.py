"""A vLLM engine inside an actor's process."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starec_ray.errors import ConfigError, STARecError

REPLY_FORM = "reply_form"  # in SamplingParams.extra_args: `ReplyForm.plain()`


def start_engine(config: Any) -> Any:
    """A `vllm.LLM` by the settings of `config`, in this process."""
    on_gpu = config.num_gpus_per_env_runner > 0
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    settings: dict[str, Any] = {
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "tensor_parallel_size": config.tensor_parallel_size,
    }
    if not on_gpu:
        threads = str(max(1, int(config.num_cpus_per_env_runner)))
        # Ray gives actors one thread; vLLM would pin its own to the same first cores in every
        # actor of a machine. Both must be set before vLLM is imported.
        os.environ["OMP_NUM_THREADS"] = threads
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(config.kv_cache_gib)))
        # A group shares its prompt's whole blocks; the default of 128 tokens leaves much to redo.
        settings = {"enforce_eager": True, "block_size": 32}
        import torch

        torch.set_num_threads(int(threads))
    from vllm import LLM

    return LLM(
        config.model_path,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        enable_prefix_caching=True,
        # Log-probs at the sampling temperature; without top-p and top-k, of the whole
        # distribution.
        logprobs_mode="processed_logprobs",
        logits_processors=["actors.constrained_decoding:KeepToReplyForm"],
        seed=config.seed or 0,
        disable_log_stats=True,
        **settings,
    )


def replace_weights(llm: Any, named_tensors: Iterator[tuple[str, Any]]) -> None:
    """Replaces the engine's weights by whole tensors under Hugging Face's names.

    What was cached of the old weights is dropped.

    Raises:
        STARecError: if requests are still running.
    """
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named_tensors})
    llm.collective_rpc(_repack_tied_head)
    if not llm.reset_prefix_cache():
        raise STARecError("vLLM kept its prefix cache: requests are still running.")


def _repack_tied_head(worker: Any) -> None:
    """On a CPU a head tied to the embedding has a packed copy that a reload leaves behind."""
    model = worker.model_runner.get_model()
    head = getattr(model, "lm_head", None)
    if worker.device.type == "cpu" and model.config.tie_word_embeddings and head is not None:
        head.quant_method.process_weights_after_loading(head)


def saved_weights(folder: str) -> Iterator[tuple[str, Any]]:
    """The tensors of a saved model (a folder, or a Hugging Face id), one at a time.

    Raises:
        ConfigError: if there are no safetensors.
    """
    from huggingface_hub import snapshot_download
    from safetensors import safe_open

    if not Path(folder).is_dir():
        folder = snapshot_download(folder, allow_patterns=["*.safetensors"])
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no .safetensors: not a saved model.")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - the object isn't a mapping
                yield name, tensors.get_tensor(name)

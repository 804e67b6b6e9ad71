"""What tells a run's checkpoints from another run's: what it learns from, and how.

A checkpoint holds all weights, so a model's folder counts for its shape and its tokenizer alone.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starec_ray.config.recipe import Recipe, fixed_keys, resolved_sections
from starec_ray.config.run_settings import RunSettings
from starec_ray.data.store import content_hash
from starec_ray.files import sha256_of
from starec_ray.models.resolve import load_tokenizer
from starec_ray.training.traces import TraceSource

MODEL = "the model's shape"
TOKENIZER = "the model's tokenizer"
# What it makes of this tells how it takes a text apart, besides what its vocabulary is.
SAMPLE = "<think>Élan vital, 2nd  ed.\t(1999):\n1. WALL·E – 7/10 你好 🎬</think>\n"
NOT_SHAPE = {"_name_or_path", "transformers_version", "dtype"}  # of a model's configuration


def identity(config: Any, metric: str = "") -> dict[str, dict[str, Any]]:
    """Of a resolved `STARecConfig`, as `Checkpoints` compares it.

    Args:
        metric: what the run's checkpoints are scored by; the algorithm doesn't know it.

    Returns:
        "inputs": SHA-256 of the data, of the traces and of the model's shape. Where they lie is
            no part of it: a run may go on where they lie elsewhere.
        "settings": what a run may not change as it goes on, "section.key" → value, and the
            tokenizer's hash, which checkpoints of earlier versions don't know.
    """
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(config.model_path).to_dict()
    shape = {key: value for key, value in shape.items() if key not in NOT_SHAPE}
    text = json.dumps(shape, sort_keys=True, default=str)
    recipe = Recipe(config, RunSettings(seed=config.seed), {})
    settings = fixed_keys(resolved_sections(recipe))
    settings |= {"run.metric": metric, TOKENIZER: _hash_tokenizer(config.model_path)}
    if not metric:
        del settings["run.metric"]
    return {
        "inputs": {
            "data.path": content_hash(Path(config.data_path)),
            "anchor.traces": _hash_traces(config.traces),
            MODEL: hashlib.sha256(text.encode()).hexdigest(),
        },
        "settings": settings,
    }


def _hash_tokenizer(model_path: str) -> str:
    """The beginning of the SHA-256 of all by which it makes tokens of chats and texts of tokens."""
    tokenizer = load_tokenizer(model_path)
    parts = [
        sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template,
        tokenizer.eos_token,
        tokenizer.encode(SAMPLE, add_special_tokens=False),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _hash_traces(names: Sequence[str]) -> str:
    """SHA-256 of the sources of traces in their order: each one's content and kinds."""
    sources = [TraceSource.of(name) for name in names]
    described = [(source.kinds, source.path and sha256_of(source.path)) for source in sources]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()

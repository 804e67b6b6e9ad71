"""What tells a run's checkpoints from another run's: what it learns from, and how."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starec_ray.config.fields import RunSettings
from starec_ray.config.recipe import Recipe, fixed_keys, resolved_sections
from starec_ray.data.store import content_hash
from starec_ray.files import sha256_of
from starec_ray.training.traces import TraceSource

MODEL = "the model's shape"
NOT_SHAPE = {"_name_or_path", "transformers_version", "dtype"}  # of a model's configuration


def identity(config: Any) -> dict[str, dict[str, Any]]:
    """Of a resolved `STARecConfig`, as `Checkpoints` compares it.

    Returns:
        "inputs": SHA-256 of the data, of the traces and of the model's shape. Where they lie is
            no part of it: a run may go on where they lie elsewhere.
        "settings": what a run may not change as it goes on, "section.key" → value.
    """
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(config.model_path).to_dict()
    shape = {key: value for key, value in shape.items() if key not in NOT_SHAPE}
    text = json.dumps(shape, sort_keys=True, default=str)
    recipe = Recipe(config, RunSettings(seed=config.seed), {})
    settings = fixed_keys(resolved_sections(recipe))
    for key in ("run.metric", "run.mode"):  # the algorithm doesn't know them
        del settings[key]
    return {
        "inputs": {
            "data.path": content_hash(Path(config.data_path)),
            "anchor.traces": _hash_traces(config.traces),
            MODEL: hashlib.sha256(text.encode()).hexdigest(),
        },
        "settings": settings,
    }


def _hash_traces(names: Sequence[str]) -> str:
    """SHA-256 of the sources of traces in their order: each one's content and kinds."""
    sources = [TraceSource.of(name) for name in names]
    described = [(source.kinds, source.path and sha256_of(source.path)) for source in sources]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()

"""What tells a run's checkpoints from another run's: what it learns from, and how."""

import hashlib
import json
from typing import Any

from starec_ray.config.fields import RunSettings
from starec_ray.config.recipe import Recipe, fixed_keys, resolved_sections

MODEL = "the model's shape"
NOT_SHAPE = {"_name_or_path", "transformers_version", "dtype"}  # of a model's configuration


def identity(config: Any) -> dict[str, dict[str, Any]]:
    """Of a resolved `STARecConfig`, as `Checkpoints` compares it.

    Returns:
        "inputs": the SHA-256 of each input file, by its path, and of the model's shape.
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
        "inputs": config.input_hashes() | {MODEL: hashlib.sha256(text.encode()).hexdigest()},
        "settings": settings,
    }

"""How large a model is, without its weights."""

import re
from typing import Any

from starec_ray.errors import ConfigError
from starec_ray.models.resolve import EMBEDDED, resolve_model


def without_weights(name: str) -> Any:
    """The causal language model of that name, on the device "meta"; None where its config can't
    be fetched, which takes transformers half a minute to find out.

    Raises:
        ConfigError: it is no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        model_config = AutoConfig.from_pretrained(resolve_model(name))
    except OSError:
        return None
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(model_config)
    except ValueError as error:
        raise ConfigError(f"{name!r} is no causal language model: {error}") from error


def count_parameters(name: str, model: Any) -> tuple[int, str]:
    """(parameters, where the number is from).

    Args:
        name: of the model.
        model: what `without_weights` gives for it; where that is None, the number is the one that
            the name tells ("-7B"), 0 if it tells none.
    """
    if model is None:
        parameters = _parameters_in(name)
        told = "by its name" if parameters else "sizes unknown"
        return parameters, f"{told}: its config can't be fetched from here"
    model.tie_weights()  # else a tied head would count twice
    origin = "embedded" if name in EMBEDDED else "from its config"
    return sum(p.numel() for p in model.parameters()), origin


def _parameters_in(name: str) -> int:
    """ "owner/Model-0.5B-Instruct" → 500,000,000; 0 if the name tells none."""
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([BM])(?![a-z])", name, re.IGNORECASE)
    if found is None:
        return 0
    return round(float(found[1]) * {"b": 1e9, "m": 1e6}[found[2].lower()])

"""Which settings there are: sections, keys, their types and the attributes that hold them."""

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any

from starec_ray.config.run_settings import RunSettings
from starec_ray.config.starec_config import STARecConfig

SECTIONS = [
    "data",
    "model",
    "anchor",
    "rewards",
    "training",
    "env_runners",
    "learners",
    "evaluation",
    "fault_tolerance",
]

# Keys whose attribute has another name.
_RENAMED = {"model.name": "model_name", "data.path": "data_path"}

_TYPE_WORDS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    dict: "mapping",
    list: "list",
}


def known_fields() -> dict[str, dict[str, Any]]:
    """Section → key → type, read off the configuration's own methods."""
    found: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        method = section_method(section)
        hints = typing.get_type_hints(method)
        found[section] = {
            name: hints[name]
            for name, parameter in inspect.signature(method).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
    found["run"] = typing.get_type_hints(RunSettings)
    return found


def section_method(section: str) -> Callable[..., STARecConfig]:
    """The method of `STARecConfig` that sets a section's keys."""
    return getattr(STARecConfig, "set_model" if section == "model" else section)


def type_words(wanted: Any) -> str:
    """A key's type in a recipe's terms: "whole number", "number or list", "list of texts"."""
    kinds = typing.get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    # A path is text in a recipe.
    return " or ".join(_kind_words(kind) for kind in kinds if kind is not Path)


def _kind_words(kind: Any) -> str:
    if kind in _TYPE_WORDS:
        return _TYPE_WORDS[kind]
    [inner] = typing.get_args(kind)
    return f"list of {_TYPE_WORDS[inner]}s"


def attribute_of(key: str) -> str:
    """ "section.key" → the attribute of `STARecConfig` that holds it."""
    return _RENAMED.get(key, key.partition(".")[2])

"""Recipes: a run as a YAML file, section by section as in `STARecConfig`."""

import contextlib
import dataclasses
import difflib
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from starec_ray.checkpoints.changes import changes_of_a_run
from starec_ray.config import STARecConfig
from starec_ray.config.checks import RLLIB_UNUSED, check_number
from starec_ray.config.fields import SECTIONS, attribute_of, known_fields, type_words
from starec_ray.config.run_settings import RUN_RANGES, RunSettings
from starec_ray.errors import ConfigError
from starec_ray.files import read_yaml

# What a run that goes on may change, and what of the section run it may not.
FREE_SECTIONS = {"env_runners", "learners", "evaluation", "fault_tolerance"}
FREE = {
    "data.path",  # of this and the next one the contents are compared (config/identity.py)
    "anchor.traces",
    "model.dtype",
    "anchor.anchor_lr",
    "training.lr",
    "rewards.num_reward_actors",
}
FIXED_OF_RUN = {"seed", "metric"}  # the scores of its checkpoints are by these

# What run.ray may set; Ray has settings for experts besides, whose names begin with "_".
RAY_SETTINGS = inspect.signature(ray.init).parameters.keys() - {
    "kwargs",
    "log_to_driver",  # set by `cluster.connection.start_ray`
    "runtime_env",
}
RAY_COUNTS = ("num_cpus", "num_gpus", "object_store_memory")


@dataclass(slots=True)
class Recipe:
    """A run: its algorithm's configuration, and what is done around it.

    `sections` is the recipe as given, overrides included: plain YAML types.
    """

    config: STARecConfig
    run: RunSettings
    sections: dict[str, dict[str, Any]]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `key=value` overrides.

    A key is "section.name", or the name alone; the value is YAML.

    Raises:
        ConfigError: no such file, not YAML, an unknown section or key (the nearest is named),
            or a value of the wrong type.
    """
    given = read_yaml(path, f"there is no recipe {path}; ready ones lie in recipes/.")
    sections = sections_of(given or {}, path)
    for text in overrides:
        override(sections, text)
    return build(sections)


def sections_of(given: Any, path: str | Path) -> dict[str, dict[str, Any]]:
    """What the YAML file at a path holds, section by section.

    Raises:
        ConfigError: it holds something else.
    """
    if not isinstance(given, dict) or not all(isinstance(s, dict) for s in given.values()):
        raise ConfigError(f"{path} doesn't hold sections ({_known_sections()}) of key: value.")
    sections = {name: dict(keys) for name, keys in given.items()}
    if sections.get("run", {}).get("mode") == "max":  # earlier versions wrote it
        del sections["run"]["mode"]
    return sections


def build(given: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """Sections → a validated configuration; raises as `load_recipe` does."""
    sections = {name: dict(keys) for name, keys in given.items()}
    config = STARecConfig()
    run = RunSettings()
    for section, keys in sections.items():
        if section not in (*SECTIONS, "run"):
            raise ConfigError(
                f"unknown section {section!r}{_nearest(section, known_fields()) or '.'}"
            )
        keys = sections[section] = checked(section, keys, known_fields()[section])
        if section == "run":
            run = dataclasses.replace(run, **keys)
        else:
            getattr(config, section)(**keys)
    for name, allowed in RUN_RANGES.items():
        check_number(f"run.{name}", getattr(run, name), allowed)
    _check_ray_settings(run.ray)
    config.debugging(seed=run.seed)
    config.validate()
    return Recipe(config, run, sections)


def checked(section: str, given: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A section's keys, numbers that YAML took for text mended.

    Args:
        fields: key → type.

    Raises:
        ConfigError: a key that isn't known (the nearest is named), a value of the wrong type.
    """
    keys = {}
    for key, value in given.items():
        if key not in fields:
            if instead := RLLIB_UNUSED.get(key) or RLLIB_UNUSED.get(f"_{key}"):
                raise ConfigError(
                    f"{section}.{key} is RLlib's and would do nothing here: {instead}."
                )
            names = {f"{s}.{k}": None for s, ks in known_fields().items() for k in ks}
            near = _nearest(key, fields) or _nearest(f"{section}.{key}", names)
            raise ConfigError(f"unknown key {section}.{key}{near or '.'}")
        keys[key] = _number(value, fields[key])
        _check_type(f"{section}.{key}", keys[key], fields[key])
    return keys


def with_values(
    sections: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """A copy of a recipe's sections with other values for some "section.key"."""
    changed = {name: dict(keys) for name, keys in sections.items()}
    for key, value in values.items():
        section, _, name = key.partition(".")
        changed.setdefault(section, {})[name] = value
    return changed


def resolved_sections(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Every key of every section with the value that the run uses: a recipe that says it all."""
    sections: dict[str, dict[str, Any]] = {}
    for section, fields in known_fields().items():
        owner = recipe.run if section == "run" else recipe.config
        sections[section] = {}
        for key in fields:
            value = getattr(owner, attribute_of(f"{section}.{key}"))
            value = list(value) if isinstance(value, tuple) else value
            sections[section][key] = value
    return sections


def fixed_keys(sections: Mapping[str, Any]) -> dict[str, Any]:
    """What a run may not change as it goes on, "section.key" → value, of `resolved_sections`; two
    of these only within limits, see `changes_of_a_run`.

    How long it runs, how fast it learns, in which dtype (another machine may be fast at another),
    where its inputs lie, what it evaluates, its actors, ZeRO's stage, the deadlines and the alarms'
    limits are free.
    """
    return {
        f"{section}.{key}": value
        for section, keys in sections.items()
        for key, value in keys.items()
        if section not in FREE_SECTIONS
        and f"{section}.{key}" not in FREE
        and (section != "run" or key in FIXED_OF_RUN)
    }


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a run that goes on may not change between two `resolved_sections`, one text a key."""
    return changes_of_a_run(fixed_keys(before), fixed_keys(now))


def _check_ray_settings(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in RAY_SETTINGS and not str(name).startswith("_"):
            near = _nearest(name, dict.fromkeys(RAY_SETTINGS))
            raise ConfigError(f"run.ray has {name}, which ray.init doesn't take{near or '.'}")
        if name in RAY_COUNTS and (not _fits(value, int) or value < 0):
            raise ConfigError(f"run.ray.{name} is {value!r}; it must be a whole number from 0 on.")


def override(sections: dict[str, dict[str, Any]], text: str) -> None:
    """Applies one `key=value` to a recipe's sections.

    Raises:
        ConfigError: it is none, or of an unknown key.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is no override: write key=value.")
    section, dot, name = key.strip().partition(".")
    if not dot:
        owners = [s for s, fields in known_fields().items() if section in fields]
        if len(owners) != 1:
            names = {name: None for fields in known_fields().values() for name in fields}
            raise ConfigError(f"unknown key {section}{_nearest(section, names) or '.'}")
        section, name = owners[0], section
    try:
        sections.setdefault(section, {})[name] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {key} is not YAML: {error}") from None


def _number(value: Any, wanted: Any) -> Any:
    """YAML takes "1e-5" for text, for want of a dot; in lists of numbers too."""
    if float in (wanted, *typing.get_args(wanted)):
        if isinstance(value, list):
            return [_number(inner, wanted) for inner in value]
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                return float(value)
    return value


def _check_type(key: str, value: Any, wanted: Any) -> None:
    options = typing.get_args(wanted) or (wanted,)
    origin = typing.get_origin(wanted)
    if origin is typing.Literal:
        if value not in options:
            raise ConfigError(f"{key} is {value!r}; it may be one of: {', '.join(options)}.")
        return
    if origin is not None and _is_subclass(origin, Sequence):
        if isinstance(value, list) and all(isinstance(v, options[0]) for v in value):
            return
    elif any(_fits(value, option) for option in options):
        return
    raise ConfigError(f"{key} is {value!r}; it must be: {type_words(wanted)}.")


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool):
        return wanted is bool
    if wanted is float:
        return isinstance(value, int | float)
    return isinstance(wanted, type) and isinstance(value, wanted)


def _is_subclass(candidate: Any, base: type) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, base)


def _nearest(word: object, known: Mapping[str, Any]) -> str:
    """To a key, which YAML may take for a number, a truth value or nothing."""
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _known_sections() -> str:
    return ", ".join([*SECTIONS, "run"])

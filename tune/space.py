"""Search spaces: which fields of a recipe a sweep varies, and over which values; a YAML file.

sweep:
  num_samples: 16
space:
  training.lr: {loguniform: [1.0e-6, 1.0e-4]}
  training.group_size: {choice: [4, 8, 16]}
"""

import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune

from starec_ray.checkpoints.changes import KL
from starec_ray.config.checks import Range, check_number
from starec_ray.config.fields import SECTIONS, attribute_of
from starec_ray.config.recipe import Recipe, build, checked, with_values
from starec_ray.errors import ConfigError
from starec_ray.files import read_yaml

# Name → (what makes it, how many numbers it takes; None: a list of values).
DOMAINS: dict[str, tuple[Callable[..., Any], int | None]] = {
    "uniform": (tune.uniform, 2),
    "loguniform": (tune.loguniform, 2),
    "randint": (tune.randint, 2),
    "choice": (tune.choice, None),
    "grid": (tune.grid_search, None),
}
LISTS = {name for name, (_, numbers) in DOMAINS.items() if numbers is None}
SEED = "run.seed"  # of the section `run` the one that is a trial's own
CHANGE_WITHIN_A_TRIAL = ("training.", "rewards.")
SWEEP_RANGES = {
    "num_samples": Range(1, whole=True),
    "grace_iterations": Range(1, whole=True),
    "max_concurrent": Range(0, whole=True),
}


@dataclass(frozen=True)
class SweepSettings:
    """The section `sweep`.

    Attributes:
        num_samples: number of trials; with `grid` fields, trials per combination of their values.
        scheduler: "asha" stops trials that fall behind; "pbt" lets them copy better ones and vary
            their values, only those of `training` and `rewards`; "none" lets all trials finish.
        searcher: "random", or "optuna", which models the results so far.
        grace_iterations: GRPO iterations that every trial gets (asha), or between two
            perturbations (pbt).
        max_concurrent: how many trials run at a time; 0: as many as the cluster holds.
    """

    num_samples: int = 8
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    searcher: Literal["random", "optuna"] = "random"
    grace_iterations: int = 2
    max_concurrent: int = 0

    def __post_init__(self) -> None:
        for name, allowed in SWEEP_RANGES.items():
            check_number(f"sweep.{name}", getattr(self, name), allowed)


@dataclass(frozen=True)
class Space:
    """What varies: "section.key" → the name of a domain → its arguments, as in the YAML."""

    settings: SweepSettings
    fields: dict[str, dict[str, list]]

    def size(self) -> int:
        """How many trials are drawn."""
        grids = (len(field["grid"]) for field in self.fields.values() if "grid" in field)
        return self.settings.num_samples * math.prod(grids)

    def domains(self) -> dict[str, Any]:
        """Attribute of the configuration → Tune's domain for it."""
        return {attribute_of(key): _domain(given) for key, given in self.fields.items()}

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Attribute of the configuration → its lowest and highest value, for domains that are a
        range and not a list."""
        return {
            attribute_of(key): (ends[0], ends[1])
            for key, field in self.fields.items()
            if DOMAINS[next(iter(field))][1] and (ends := _extremes(key, field))
        }


def load_space(path: str | Path, recipe: Recipe) -> Space:
    """Reads a space and checks it against the recipe that it varies.

    Raises:
        ConfigError: names the file, the key, what was found and what is allowed; also if a value
            of the space makes the recipe invalid.
    """
    given = read_yaml(path, f"there is no search space {path}; ready ones lie in recipes/spaces/.")
    sections = given if isinstance(given, dict) else {}
    sweep = sections.get("sweep") or {}
    if not isinstance(sections.get("space"), dict) or not isinstance(sweep, dict):
        raise ConfigError(f"{path}: a search space holds a section `space`, and may hold `sweep`.")
    if unknown := [name for name in sections if name not in ("space", "sweep")]:
        raise ConfigError(f"{path}: unknown section {unknown[0]!r}; there are space, sweep.")
    settings = SweepSettings(**checked("sweep", sweep, typing.get_type_hints(SweepSettings)))
    if not given["space"]:
        raise ConfigError(f"{path}: the space is empty: there is nothing to vary.")
    space = Space(settings, {str(key): value for key, value in given["space"].items()})
    for key, field in space.fields.items():
        section, _, name = key.partition(".")
        if section not in SECTIONS and key != SEED:
            known = ", ".join(SECTIONS)
            raise ConfigError(
                f"{path}: {key} is no field to vary: write section.key of {known}; or {SEED}."
            )
        as_read = []  # numbers that YAML took for text mended
        for value in _extremes(key, field):
            try:
                made = build(with_values(recipe.sections, {key: value}))
            except ConfigError as error:
                raise ConfigError(f"{path}: {key} of {value!r} makes no recipe: {error}") from None
            as_read.append(made.sections[section][name])
        for listed in LISTS & set(field):
            field[listed] = as_read
    gridded = [key for key, field in space.fields.items() if "grid" in field]
    if gridded and (settings.searcher == "optuna" or settings.scheduler == "pbt"):
        raise ConfigError(f"{path}: {gridded[0]} is a grid, which can't be searched: use choice.")
    if settings.scheduler == "pbt":
        _check_population(space, str(path))
    return space


def _check_population(space: Space, path: str) -> None:
    """For pbt: a trial that copies another continues from its checkpoint, with other values."""
    if space.settings.searcher != "random":
        raise ConfigError(f"{path}: pbt finds values by itself: it takes the searcher random.")
    for key in space.fields:
        if not key.startswith(CHANGE_WITHIN_A_TRIAL):
            raise ConfigError(
                f"{path}: {key} can't change within a trial, and pbt changes values on the way: "
                "it may vary the fields of training and rewards. Leave it out, or take asha."
            )
    weights = _extremes(KL, space.fields[KL]) if KL in space.fields else []
    if 0 in weights and any(weights):
        raise ConfigError(
            f"{path}: {KL} is 0 for some trials: they keep no anchor, and pbt lets "
            "others copy them, which need one. Leave 0 out, or take asha."
        )


def _extremes(key: str, field: Any) -> list:
    """A field's lowest and highest value; of a list, all values."""
    if not isinstance(field, Mapping) or len(field) != 1 or next(iter(field)) not in DOMAINS:
        raise ConfigError(
            f"space: {key} is {field!r}; write one of {', '.join(DOMAINS)} with its values, such "
            "as {choice: [1, 2]} or {loguniform: [1.0e-6, 1.0e-4]}."
        )
    [(name, values)] = field.items()
    count = DOMAINS[name][1]
    if not isinstance(values, list) or not values or (count and len(values) != count):
        wanted = f"{count} numbers" if count else "a list of values"
        raise ConfigError(f"space: {key}: {name} takes {wanted}; found {values!r}.")
    if count is None:
        return values
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ConfigError(f"space: {key}: {name} takes numbers; found {values!r}.")
    low, high = values
    if low >= high or (name == "loguniform" and low <= 0):
        raise ConfigError(f"space: {key}: {name} goes from low to high; found {values!r}.")
    # What is drawn between two ends is a fraction, which no field of whole numbers takes.
    return [low, high - 1] if name == "randint" else [float(low), float(high)]


def _domain(field: Mapping[str, list]) -> Any:
    [(name, values)] = field.items()
    make, count = DOMAINS[name]
    return make(*values) if count else make(values)

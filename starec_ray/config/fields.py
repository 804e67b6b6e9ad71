"""Which settings there are: sections, keys, their types and the attributes that hold them."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal

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

RUN_LOWEST = {
    "iterations": 0,
    "checkpoint_every": 0,
    "keep_checkpoints": 0,
    "evaluation_cases": 0,
}


@dataclass(slots=True)
class RunSettings:
    """Sets what the command does around the algorithm.

    Attributes:
        seed: seed for everything random in a run.
        iterations: GRPO iterations of stage two.
        checkpoint_every: iterations between checkpoints, those of both stages counted together;
            there is always one after the anchor and one at the end. 0: only those.
        keep_checkpoints: how many of the newest checkpoints to keep, besides the best by
            `run.metric` if `evaluation.evaluation_interval` is set; 0 keeps all.
        checkpoint_storage: address (s3://bucket/folder, gs://…, anything that pyarrow or fsspec
            knows) for copies of the kept checkpoints; a run folder that has none resumes from them.
        evaluate: evaluate all policies on the test users at the end.
        evaluation_cases: test users to evaluate on; 0 takes all.
        evaluate_slow_thinking: evaluate with slow thinking too (about four times the work in all).
        metric: metric on validation users by which a sweep compares trials and a run chooses its
            best checkpoint.
        mode: whether the highest ("max") or the lowest ("min") `run.metric` is best.
        ray: arguments of `ray.init`, such as num_cpus, for the local Ray that starts if
            RAY_ADDRESS names no cluster.
    """

    seed: int = 0
    iterations: int = 100
    checkpoint_every: int = 10
    keep_checkpoints: int = 2
    checkpoint_storage: str = ""
    evaluate: bool = True
    evaluation_cases: int = 0
    evaluate_slow_thinking: bool = True
    metric: Literal["ndcg@1", "ndcg@5", "ndcg@10", "ndcg@20", "hr@10", "mrr"] = "ndcg@10"
    mode: Literal["max", "min"] = "max"
    ray: dict = dataclasses.field(default_factory=dict)


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

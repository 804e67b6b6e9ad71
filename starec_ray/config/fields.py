"""Which settings there are: sections, keys, their types and the attributes that hold them."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
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

RUN_LOWEST = {
    "seed": 0,
    "iterations": 0,
    "checkpoint_every": 0,
    "keep_checkpoints": 0,
    "evaluation_cases": 0,
}


@dataclass(slots=True)
class RunSettings:
    """Sets what the command does around the algorithm.

    Attributes:
        seed: seeds all that is random in a run.
        iterations: GRPO iterations of stage two.
        checkpoint_every: iterations of either stage between checkpoints, beside those after the
            anchor and at the end; 0: only those.
        keep_checkpoints: so many are kept, the newest, and beside them the best by `metric`, where
            evaluation.evaluation_interval has validation users asked; 0 keeps all.
        checkpoint_storage: an address (s3://bucket/folder, gs://…, whatever pyarrow or fsspec
            knows) that holds a copy of those kept; a run folder without any goes on from there.
        evaluate: evaluate all policies on the test users at the end.
        evaluation_cases: test users asked; 0 takes all.
        evaluate_slow_thinking: evaluate with slow thinking too (some three times the work).
        metric: what a sweep compares trials by, and the best checkpoint is chosen by, on
            validation users.
        mode: whether the best trial has the most ("max") or the least ("min") of `metric`.
        ray: arguments of `ray.init` where no cluster is running yet, such as num_cpus.
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


def attribute_of(key: str) -> str:
    """ "section.key" → the attribute of `STARecConfig` that holds it."""
    return _RENAMED.get(key, key.partition(".")[2])

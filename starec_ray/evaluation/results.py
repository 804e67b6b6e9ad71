"""What an evaluation found: the target's rank in every case, and the numbers drawn from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starec_ray.errors import DataError
from starec_ray.metrics import (
    bootstrap_interval,
    hit_rate_at,
    ndcg_at,
    paired_difference,
    reciprocal_rank,
)

SLOW = "+slow"  # ends the name of a policy that reflected on an earlier round first
HEADLINE = "ndcg@10"
ACTIVITY_GROUPS = 4

EVALUATION_CASES = pa.schema(
    [
        pa.field("policy", pa.string(), nullable=False),
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("target_rank", pa.int16(), nullable=False),  # 1-based
        pa.field("malformed", pa.bool_(), nullable=False),
        pa.field("history_shed", pa.int16(), nullable=False),  # items dropped to fit the window
        pa.field("malformed_reflection", pa.bool_()),  # null without slow thinking
    ]
)


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """One policy's ranks over the evaluated cases.

    Attributes:
        policy: its name, unique in an evaluation; ends in "+slow" with slow thinking.
        case_ids: the cases [cases].
        target_ranks: 1-based ranks of the targets, int array [cases]; a malformed reply's
            ranking was completed in the order shown and counts like any other.
        malformed: which replies were malformed, bool array [cases].
        history_shed: items of history that the prompts of the ranking left out to fit the
            window, int array [cases].
        malformed_reflections: with slow thinking, which reflections were malformed, so that the
            ranking was made with the summary of before: bool array [cases].
    """

    policy: str
    case_ids: tuple[str, ...]
    target_ranks: NDArray[np.int64]
    malformed: NDArray[np.bool_]
    history_shed: NDArray[np.int64]
    malformed_reflections: NDArray[np.bool_] | None = None

    @property
    def slow_thinking(self) -> bool:
        return self.policy.endswith(SLOW)

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Metric name to one value a case [cases], as fractions 0 … 1."""
        ranks = self.target_ranks
        return {
            **{f"ndcg@{k}": ndcg_at(ranks, k) for k in (1, 5, 10, 20)},
            **{f"hr@{k}": hit_rate_at(ranks, k) for k in (1, 5, 10)},
            "mrr": reciprocal_rank(ranks),
        }

    def malformed_rates(self) -> dict[str, float]:
        """Shares of malformed replies: of the rankings, and with slow thinking of the
        reflections."""
        rates = {"malformed_rate": float(self.malformed.mean())}
        if self.malformed_reflections is not None:
            rates["malformed_reflection_rate"] = float(self.malformed_reflections.mean())
        return rates


def summarise(
    results: Sequence[PolicyResult], activity: Mapping[str, int], *, seed: int = 0
) -> dict[str, Any]:
    """The content of evaluation.json: every policy's metrics and the differences between them.

    Values are fractions 0 … 1, intervals are 95 % percentile bootstrap intervals over cases.

    Args:
        results: one a policy, all over the same cases in the same order.
        activity: case id to the user's number of interactions.
        seed: of the bootstrap.

    Raises:
        ValueError: if policies repeat, or their cases differ, or there are none.
    """
    cases = _shared_cases(results)
    groups = activity_groups([activity[case_id] for case_id in cases])
    return {
        "cases": len(cases),
        "results": [_policy_summary(result, groups, seed) for result in results],
        "paired_differences": [
            _difference(later, earlier, seed) for earlier, later in combinations(results, 2)
        ],
    }


def activity_groups(activity: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Cases by how active their user is, least active first: "20–48" → a mask [cases].

    Cut at the quartiles, so the groups are about equally large; equal activities stay together.
    """
    values = np.asarray(activity)
    cuts = np.quantile(values, np.arange(1, ACTIVITY_GROUPS) / ACTIVITY_GROUPS)
    group = np.searchsorted(cuts, values, side="left")
    masks = (group == number for number in np.unique(group))
    return {f"{values[mask].min()}–{values[mask].max()}": mask for mask in masks}


def results_table(results: Sequence[PolicyResult]) -> pa.Table:
    """Every policy's rank in every case, schema EVALUATION_CASES."""
    return pa.concat_tables(
        pa.table(
            [
                [result.policy] * len(result.case_ids),
                result.case_ids,
                result.target_ranks.astype(np.int16),
                result.malformed,
                result.history_shed.astype(np.int16),
                [None] * len(result.case_ids)
                if result.malformed_reflections is None
                else result.malformed_reflections,
            ],
            schema=EVALUATION_CASES,
        )
        for result in results
    )


def read_results(path: Path) -> list[PolicyResult]:
    """The results in an evaluation_cases.parquet, policies in the order written.

    Raises:
        DataError: if there is no such file or it has another schema.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: it is written by `starec evaluate`.")
    table = pq.read_table(path)
    if not table.schema.equals(EVALUATION_CASES):
        raise DataError(f"{path} has another schema than EVALUATION_CASES: evaluate again.")
    policies = np.asarray(table["policy"].to_pylist(), dtype=object)
    parts = {name: table.filter(pa.array(policies == name)) for name in dict.fromkeys(policies)}
    return [
        PolicyResult(
            policy,
            tuple(part["case_id"].to_pylist()),
            part["target_rank"].to_numpy().astype(np.int64),
            part["malformed"].to_numpy(),
            part["history_shed"].to_numpy().astype(np.int64),
            None
            if part["malformed_reflection"].null_count
            else part["malformed_reflection"].to_numpy(),
        )
        for policy, part in parts.items()
    ]


def _shared_cases(results: Sequence[PolicyResult]) -> tuple[str, ...]:
    names = [result.policy for result in results]
    if len(set(names)) < len(names):
        raise ValueError(f"policies repeat: {names}")
    if len({result.case_ids for result in results}) != 1 or not results[0].case_ids:
        raise ValueError("policies are compared on the same cases, in the same order, at least one")
    return results[0].case_ids


def _policy_summary(
    result: PolicyResult, groups: Mapping[str, NDArray[np.bool_]], seed: int
) -> dict[str, Any]:
    metrics = result.metrics()
    return {
        "policy": result.policy,
        "slow_thinking": result.slow_thinking,
        **{name: float(values.mean()) for name, values in metrics.items()},
        "ci95": {
            name: list(bootstrap_interval(values, seed=seed)) for name, values in metrics.items()
        },
        **result.malformed_rates(),
        "history_shed": float(result.history_shed.mean()),
        "by_activity": [
            {
                "activity": label,
                "cases": int(mask.sum()),
                HEADLINE: float(metrics[HEADLINE][mask].mean()),
            }
            for label, mask in groups.items()
        ],
    }


def _difference(a: PolicyResult, b: PolicyResult, seed: int) -> dict[str, Any]:
    found = paired_difference(a.metrics()[HEADLINE], b.metrics()[HEADLINE], seed=seed)
    return {
        "a": a.policy,
        "b": b.policy,
        HEADLINE: found.difference,
        "ci95": list(found.interval),
        "p": found.p,
    }

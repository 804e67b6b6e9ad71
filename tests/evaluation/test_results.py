"""The numbers of evaluation.json, and the ranks that anybody can compute them from again."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from starec_ray.errors import DataError
from starec_ray.evaluation.results import (
    PolicyResult,
    activity_groups,
    read_results,
    results_table,
    summarise,
)

CASES = ("a", "b", "c", "d")
ACTIVITY = {"a": 20, "b": 35, "c": 35, "d": 300}


def result(policy: str, ranks: list[int], malformed: int = 0) -> PolicyResult:
    flags = np.arange(len(ranks)) < malformed
    shed = np.arange(len(ranks))
    reflections = flags[::-1] if policy.endswith("+slow") else None
    return PolicyResult(policy, CASES[: len(ranks)], np.array(ranks), flags, shed, reflections)


def test_the_summary_worked_by_hand() -> None:
    summary = summarise([result("random", [1, 3, 7, 20], malformed=1)], ACTIVITY)
    assert summary["cases"] == 4
    assert summary["paired_differences"] == []
    (entry,) = summary["results"]
    assert (entry["policy"], entry["slow_thinking"]) == ("random", False)
    assert entry["ndcg@1"] == 0.25
    assert entry["ndcg@5"] == pytest.approx((1 + 0.5) / 4)
    assert entry["ndcg@10"] == pytest.approx((1 + 0.5 + 1 / 3) / 4)
    assert entry["ndcg@20"] == pytest.approx((1 + 0.5 + 1 / 3 + 1 / np.log2(21)) / 4)
    assert [entry[f"hr@{k}"] for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert entry["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 7 + 1 / 20) / 4)
    assert entry["malformed_rate"] == 0.25
    assert entry["history_shed"] == 1.5
    low, high = entry["ci95"]["ndcg@10"]
    assert 0 <= low < entry["ndcg@10"] < high <= 1


def test_the_users_of_each_activity_have_their_own_mean() -> None:
    [entry] = summarise([result("random", [1, 3, 7, 20])], ACTIVITY)["results"]
    assert entry["by_activity"] == [
        {"activity": "20–20", "cases": 1, "ndcg@10": 1.0},
        {"activity": "35–35", "cases": 2, "ndcg@10": pytest.approx((1 / 2 + 1 / 3) / 2)},
        {"activity": "300–300", "cases": 1, "ndcg@10": 0.0},
    ]


def test_the_shape_of_the_summary() -> None:
    names = ["random", "popularity", "untrained", "untrained+slow"]
    summary = summarise([result(name, [1, 2, 3, 4]) for name in names], ACTIVITY)
    metrics = {"ndcg@1", "ndcg@5", "ndcg@10", "ndcg@20", "hr@1", "hr@5", "hr@10", "mrr"}
    assert set(summary) == {"cases", "results", "paired_differences"}
    for entry in summary["results"]:
        assert set(entry) == metrics | {
            "policy",
            "slow_thinking",
            "ci95",
            "malformed_rate",
            "history_shed",
            "by_activity",
            *(["malformed_reflection_rate"] if entry["slow_thinking"] else []),
        }
        assert set(entry["ci95"]) == metrics
        assert all(set(group) == {"activity", "cases", "ndcg@10"} for group in entry["by_activity"])
    assert [entry["policy"] for entry in summary["results"]] == names
    assert [entry["slow_thinking"] for entry in summary["results"]] == [False, False, False, True]
    assert len(summary["paired_differences"]) == 6
    for difference in summary["paired_differences"]:
        assert set(difference) == {"a", "b", "ndcg@10", "ci95", "p"}


def test_differences_are_the_later_policy_less_the_earlier_one() -> None:
    summary = summarise([result("random", [3, 3, 3]), result("reinforced", [1, 1, 1])], ACTIVITY)
    (difference,) = summary["paired_differences"]
    assert (difference["a"], difference["b"]) == ("reinforced", "random")
    assert difference["ndcg@10"] == pytest.approx(0.5)
    assert difference["ci95"] == pytest.approx([0.5, 0.5])
    assert difference["p"] < 0.01


def test_groups_by_activity_hold_every_case_once_and_ties_together() -> None:
    groups = activity_groups([20, 35, 35, 35, 35, 90, 300, 301])
    assert list(groups) == ["20–35", "90–90", "300–301"]
    assert (np.sum(list(groups.values()), axis=0) == 1).all()
    assert list(activity_groups([12, 12])) == ["12–12"]


def test_policies_on_different_cases_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same cases"):
        summarise([result("random", [1, 2, 3]), result("popularity", [1, 2])], ACTIVITY)
    with pytest.raises(ValueError, match="repeat"):
        summarise([result("random", [1]), result("random", [1])], ACTIVITY)


def test_the_summary_can_be_computed_again_from_the_ranks_kept(tmp_path) -> None:
    results = [result("random", [1, 3, 7, 20], 2), result("reinforced+slow", [1, 1, 2, 4], 1)]
    pq.write_table(results_table(results), tmp_path / "evaluation_cases.parquet")
    again = read_results(tmp_path / "evaluation_cases.parquet")
    assert summarise(again, ACTIVITY) == summarise(results, ACTIVITY)
    assert again[1].malformed_reflections.tolist() == [False, False, False, True]


def test_ranks_that_are_not_there_are_named(tmp_path) -> None:
    with pytest.raises(DataError, match="starec evaluate"):
        read_results(tmp_path / "evaluation_cases.parquet")


def test_ranks_of_another_schema_are_refused(tmp_path) -> None:
    path = tmp_path / "evaluation_cases.parquet"
    table = results_table([result("random", [1, 2, 3, 4])])
    pq.write_table(table.drop_columns(["malformed_reflection"]), path)
    with pytest.raises(DataError, match="another schema than EVALUATION_CASES"):
        read_results(path)

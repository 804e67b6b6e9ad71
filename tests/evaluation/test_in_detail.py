"""What the other tests of these parts leave open."""

import io

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from starec_ray.data.dataset import Dataset
from starec_ray.data.prepare import prepare
from starec_ray.errors import ConfigError, DataError
from starec_ray.evaluation import plots
from starec_ray.evaluation.evaluate import (
    check_cases,
    earlier_cases,
    evaluate_all,
    evaluation_case_ids,
)
from starec_ray.evaluation.report import describe_evaluation, print_evaluation
from starec_ray.evaluation.results import read_results, results_table, summarise
from tests.evaluation.test_report import WHERE, results
from tests.evaluation.test_results import ACTIVITY, result


def test_another_seed_has_another_random_order(world) -> None:
    cases = evaluation_case_ids(world.dataset)
    asked = world.sampler, world.agent, world.dataset, world.scorer, cases, {}
    orders = {tuple(evaluate_all(*asked, seed=seed)[0].target_ranks) for seed in range(10)}
    assert len(orders) > 1


def test_the_seed_told_is_that_of_the_intervals(world, results) -> None:
    told = [describe_evaluation(results, world.dataset, **WHERE, seed=seed) for seed in range(5)]
    assert [summary["seed"] for summary in told] == list(range(5))
    assert len({str(summary["results"][0]["ci95"]) for summary in told}) > 1


def test_an_evaluation_without_slow_thinking_has_no_slow_policies(world) -> None:
    results = evaluate_all(
        world.sampler,
        world.agent,
        world.dataset,
        world.scorer,
        evaluation_case_ids(world.dataset),
        {"untrained": "a-folder"},
        slow_thinking=False,
    )
    assert [each.policy for each in results] == ["random", "popularity", "untrained"]
    assert not world.reflections()


@pytest.mark.parametrize("limit", [0, 2])
def test_what_an_evaluation_would_stop_at_is_told_before_it(make_world, limit) -> None:
    dataset = make_world(rounds=1).dataset
    check_cases(dataset, "test", limit, slow_thinking=False)
    with pytest.raises(ConfigError, match="rounds of 2 or more"):
        check_cases(dataset, "test", limit, slow_thinking=True)
    with pytest.raises(DataError, match="'validation'"):
        check_cases(dataset, "validation", limit, slow_thinking=False)


def test_the_users_of_each_activity_have_their_own_mean() -> None:
    [entry] = summarise([result("random", [1, 3, 7, 20])], ACTIVITY)["results"]
    assert entry["by_activity"] == [
        {"activity": "20–20", "cases": 1, "ndcg@10": 1.0},
        {"activity": "35–35", "cases": 2, "ndcg@10": pytest.approx((1 / 2 + 1 / 3) / 2)},
        {"activity": "300–300", "cases": 1, "ndcg@10": 0.0},
    ]


def test_ranks_of_another_schema_are_refused(tmp_path) -> None:
    path = tmp_path / "evaluation_cases.parquet"
    table = results_table([result("random", [1, 2, 3, 4])])
    pq.write_table(table.drop_columns(["malformed_reflection"]), path)
    with pytest.raises(DataError, match="another schema than EVALUATION_CASES"):
        read_results(path)


def test_the_screen_shows_the_numbers_of_the_summary() -> None:
    ranks = {"random": [4, 4, 4, 4], "popularity": [2, 2, 2, 2], "untrained": [1, 1, 3, 15]}
    results = [
        result(policy, each, malformed=policy == "untrained") for policy, each in ranks.items()
    ]
    summary = summarise(results, ACTIVITY) | {"split": "test"}
    (difference,) = [
        d for d in summary["paired_differences"] if d["a"] == "untrained" and d["b"] == "popularity"
    ]
    low, high = (100 * bound for bound in summary["results"][2]["ci95"]["ndcg@10"])
    less, more = (100 * bound for bound in difference["ci95"])
    console = Console(width=82, record=True, file=io.StringIO())
    print_evaluation(summary, console)
    shown = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert [line for line in shown if line.startswith("untrained")] == [
        f"untrained 50.0 62.5 62.5 ({low:.1f}–{high:.1f}) 68.8 75.0 60.0 25.0 %",
        f"untrained -0.6 {less:+.1f} … {more:+.1f} {difference['p']:.3f}",
        "untrained 100.0 75.0 0.0",
    ]
    assert [line.split()[0] for line in shown if "…" in line] == ["untrained"]  # not of popularity


@pytest.mark.parametrize(("known", "told"), [(0, {}), (5, {"trained_users": 5})])
def test_users_that_the_models_may_have_learned_are_told(world, results, known, told) -> None:
    summary = describe_evaluation(results, world.dataset, **WHERE, trained_users=known)
    assert {key: n for key, n in summary.items() if key == "trained_users"} == told


@pytest.mark.parametrize(("p", "told"), [(0.0009, "< 0.001"), (0.001, "0.001"), (0.04, "0.040")])
def test_a_p_of_less_than_a_thousandth_is_told_as_that(p, told) -> None:
    summary = summarise([result("popularity", [2] * 4), result("untrained", [1] * 4)], ACTIVITY)
    summary["paired_differences"][0]["p"] = p
    console = Console(width=82, record=True, file=io.StringIO())
    print_evaluation(summary | {"split": "test"}, console)
    [line] = [line for line in console.export_text().splitlines() if "…" in line]
    assert line.rstrip().endswith(f" {told}")


def test_the_round_before_the_last_of_three_is_the_earlier_one(tmp_path) -> None:
    users = {"simulated_users": 12, "train_users": 2, "validation_users": 2, "test_users": 4}
    prepare("synthetic", tmp_path / "data", rounds=3, **users)
    dataset = Dataset.load(tmp_path / "data")
    last = evaluation_case_ids(dataset)
    assert earlier_cases(dataset, last) == {f"{c[:-1]}2": f"{c[:-1]}1" for c in last}


def test_the_training_plot_shows_ndcg_in_hundredths(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    line = {"iteration": 1, "rank/reward": 0.5, "validation": {"ndcg@10": 0.3}}
    assert plots.plot_training([line, line | {"iteration": 2}], tmp_path / "training.png")
    reward, ndcg = drawn[0].axes
    assert list(reward.lines[0].get_ydata()) == [0.5, 0.5]
    assert list(ndcg.lines[0].get_ydata()) == [30.0, 30.0]

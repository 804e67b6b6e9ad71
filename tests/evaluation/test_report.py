"""What an evaluation writes and prints."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image  # comes with matplotlib
from rich.console import Console

from starec_ray.cli.evaluate import evaluate
from starec_ray.errors import ConfigError, StorageError
from starec_ray.evaluation import plots
from starec_ray.evaluation.evaluate import evaluate_all, evaluation_case_ids
from starec_ray.evaluation.plots import plot_training
from starec_ray.evaluation.report import describe_evaluation, print_evaluation, write_evaluation
from starec_ray.evaluation.results import read_results, summarise
from starec_ray.jobs.evaluate import compare
from tests.evaluation.test_results import ACTIVITY, result
from tests.tiny_recipe import tiny_recipe

PNG = b"\x89PNG\r\n"
WHERE = {"data_path": "data/four", "split": "test"}


@pytest.fixture
def results(world):
    cases = evaluation_case_ids(world.dataset)
    models = {"untrained": "a", "anchored": "b", "reinforced": "c"}
    return evaluate_all(world.sampler, world.agent, world.dataset, world.scorer, cases, models)


def test_an_evaluation_leaves_its_numbers_its_ranks_and_a_plot(world, results, tmp_path) -> None:
    folder = tmp_path / "run"
    summary = describe_evaluation(results, world.dataset, **WHERE, seed=3)
    write_evaluation(folder, results, summary)
    assert json.loads((folder / "evaluation.json").read_text()) == summary
    assert {name: summary[name] for name in ("data", "split", "seed", "cases")} == {
        "data": "data/four",
        "split": "test",
        "seed": 3,
        "cases": 4,
    }
    assert len(read_results(folder / "evaluation_cases.parquet")) == len(results)
    assert (folder / "policies.png").read_bytes().startswith(PNG)
    assert (folder / "policies.png").stat().st_size > 10_000
    names = {path.name for path in folder.iterdir()}
    assert names == {"evaluation.json", "evaluation_cases.parquet", "policies.png"}


def test_the_seed_told_is_that_of_the_intervals(world, results) -> None:
    told = [describe_evaluation(results, world.dataset, **WHERE, seed=seed) for seed in range(5)]
    assert [summary["seed"] for summary in told] == list(range(5))
    assert len({str(summary["results"][0]["ci95"]) for summary in told}) > 1


@pytest.mark.parametrize(("known", "told"), [(0, {}), (5, {"trained_users": 5})])
def test_users_that_the_models_may_have_learned_are_told(world, results, known, told) -> None:
    summary = describe_evaluation(results, world.dataset, **WHERE, trained_users=known)
    assert {key: n for key, n in summary.items() if key == "trained_users"} == told


def test_the_screen_shows_every_policy_with_interval_malformed_rate_and_difference(
    world, results
) -> None:
    summary = describe_evaluation(results, world.dataset, **WHERE)
    console = Console(width=82, record=True, file=io.StringIO())
    print_evaluation(summary, console)
    text = console.export_text()
    line = next(line for line in text.splitlines() if "reinforced+slow" in line)
    assert " ".join(line.split()[1:]) == "100.0 100.0 100.0 (100.0–100.0) 100.0 100.0 100.0 0.0 %"
    assert "HR@10" in text and "4 test users" in text
    assert "less that of popularity" in text
    assert "malformed reflections: untrained+slow 0.0 %, anchored+slow 0.0 %" in text
    assert all(result.policy in text for result in results)
    assert "10–10" in text


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


@pytest.mark.parametrize(("p", "told"), [(0.0009, "< 0.001"), (0.001, "0.001"), (0.04, "0.040")])
def test_a_p_of_less_than_a_thousandth_is_told_as_that(p, told) -> None:
    summary = summarise([result("popularity", [2] * 4), result("untrained", [1] * 4)], ACTIVITY)
    summary["paired_differences"][0]["p"] = p
    console = Console(width=82, record=True, file=io.StringIO())
    print_evaluation(summary | {"split": "test"}, console)
    [line] = [line for line in console.export_text().splitlines() if "…" in line]
    assert line.rstrip().endswith(f" {told}")


def test_figures_are_shown_though_they_can_not_be_written(world, tmp_path) -> None:
    (tmp_path / "file").touch()
    session = SimpleNamespace(
        models=world.sampler, agent=world.agent, dataset=world.dataset, rewards=world.scorer
    )
    console = Console(width=82, record=True, file=io.StringIO())
    recipe = tiny_recipe(tmp_path, tmp_path, None)
    with pytest.raises(StorageError, match=r"file/out can't be written: .* --out"):
        compare(session, {"anchored": Path("b")}, recipe, tmp_path / "file" / "out", console)
    assert "anchored+slow" in console.export_text()


@pytest.mark.parametrize(
    "other",
    [{"split": "validation"}, {"data": Path("elsewhere")}, {"overrides": ["max_rank_tokens=96"]}],
)
def test_an_evaluation_of_other_users_or_settings_does_not_replace_the_run_s_own(
    other, tmp_path
) -> None:
    with pytest.raises(ConfigError, match="need --out"):
        evaluate(run=tmp_path, **other)


@pytest.mark.parametrize("name", ["config.yaml", "best.yaml"])
def test_a_model_is_evaluated_with_the_recipe_that_lies_beside_it(
    name, tmp_path, monkeypatch, capsys
) -> None:
    asked = {}
    monkeypatch.setattr(
        "starec_ray.jobs.evaluate.evaluate_models",
        lambda models, recipe, *args, untrained, **more: asked.update(
            models=models, history=recipe.config.history_shown, untrained=untrained
        ),
    )
    where = {"data": tmp_path / "data", "out": tmp_path / "out"}
    model = tmp_path / "model"
    model.mkdir()
    evaluate(model=str(model), **where)
    assert asked == {"models": {"model": model}, "history": 10, "untrained": False}
    assert "no --recipe, and none beside the model" in capsys.readouterr().out
    (tmp_path / name).write_text("data: {path: elsewhere}\nmodel: {name: x, history_shown: 7}\n")
    evaluate(model=str(model), **where)
    assert (asked["history"], asked["untrained"]) == (7, True)
    evaluate(["history_shown=3"], model=str(model), **where)
    assert asked["history"] == 3


def test_the_training_plot_shows_reward_and_ndcg(tmp_path) -> None:
    lines = [
        {"iteration": i, "stage": "reinforce", "rank/reward": i / 20 - 0.1, "rank/reward_std": 0.3}
        for i in range(1, 11)
    ]
    plot_training(lines, tmp_path / "reward.png")
    lines[4] |= {"validation": {"ndcg@10": 0.3}}
    assert plot_training(lines, tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(PNG)
    one, two = (Image.open(tmp_path / name).width for name in ("reward.png", "training.png"))
    assert two > 1.8 * one  # a panel more


def test_the_training_plot_shows_ndcg_in_hundredths(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(plots, "save_png", lambda figure, path: drawn.append(figure))
    line = {"iteration": 1, "rank/reward": 0.5, "validation": {"ndcg@10": 0.3}}
    assert plot_training([line, line | {"iteration": 2}], tmp_path / "training.png")
    reward, ndcg = drawn[0].axes
    assert list(reward.lines[0].get_ydata()) == [0.5, 0.5]
    assert list(ndcg.lines[0].get_ydata()) == [30.0, 30.0]


def test_a_run_without_such_metrics_has_no_training_plot(tmp_path) -> None:
    assert not plot_training([{"iteration": 1, "loss": 2.0}], tmp_path / "training.png")
    assert not (tmp_path / "training.png").exists()

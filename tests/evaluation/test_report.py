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
from starec_ray.evaluation.evaluate import evaluate_all, evaluation_case_ids
from starec_ray.evaluation.plots import plot_training
from starec_ray.evaluation.report import describe_evaluation, print_evaluation, write_evaluation
from starec_ray.evaluation.results import read_results
from starec_ray.jobs.evaluate import compare
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


@pytest.mark.parametrize("other", [{"split": "validation"}, {"data": Path("elsewhere")}])
def test_an_evaluation_of_other_users_does_not_replace_the_run_s_own(other, tmp_path) -> None:
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


def test_a_run_without_such_metrics_has_no_training_plot(tmp_path) -> None:
    assert not plot_training([{"iteration": 1, "loss": 2.0}], tmp_path / "training.png")
    assert not (tmp_path / "training.png").exists()

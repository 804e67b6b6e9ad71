"""What is told of a sweep's trials, and which one is best."""

from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from starec_ray.cluster.actor_logs import HEADING
from starec_ray.config.recipe import build
from starec_ray.config.run_settings import RunSettings
from starec_ray.errors import STARecError
from tune import results as module
from tune.results import MODEL, Trial, best_of, cause_of, read_trials, write_results
from tune.space import Space, SweepSettings


def trial(name, score, cause="", folder=None):
    values = {"training.lr": 10.0 ** -int(name), "training.group_size": 4}
    return Trial(name, values, [0.1, score or 0.2], 2, score, folder, cause)


@pytest.fixture
def trials(tmp_path):
    found = []
    for name, score in (("1", 0.3), ("2", 0.5)):
        folder = tmp_path / f"checkpoint-{name}"
        (folder / MODEL).mkdir(parents=True)
        (folder / MODEL / "config.json").write_text(name)
        found.append(trial(name, score, folder=folder))
    return [*found, trial("3", None, "CUDA is out of memory")]


def test_the_best_trial_has_the_most_of_the_metric(trials):
    assert best_of(trials).name == "2"


def test_of_a_trials_checkpoints_the_best_is_taken_and_of_equals_the_newest():
    scores = [0.5, 0.1, 0.5, None]
    kept = [
        (SimpleNamespace(path=str(number)), {"score": score} if score is not None else {})
        for number, score in enumerate(scores, start=1)
    ]
    checkpoint, then = module._best_checkpoint(SimpleNamespace(best_checkpoints=kept), "score")
    assert checkpoint.name == "3"
    assert then == {"score": 0.5}
    none = SimpleNamespace(best_checkpoints=None)
    assert module._best_checkpoint(none, "score") == (None, {})


def test_without_a_checkpoint_the_cause_is_told():
    with pytest.raises(STARecError, match="out of memory"):
        best_of([trial("3", None, "CUDA is out of memory")])


def test_trials_are_told_in_the_order_in_which_they_were_drawn():
    tags = ["10_lr=1", "2_lr=2", "1_lr=3"]  # as Tune remembers them
    result = SimpleNamespace(metrics_dataframe=None, best_checkpoints=[], metrics=None, error=None)

    class Grid(list):
        _experiment_analysis = SimpleNamespace(
            trials=[SimpleNamespace(experiment_tag=tag, config={"lr": tag}) for tag in tags]
        )

    space = Space(SweepSettings(), {"training.lr": {"choice": tags}})
    found = read_trials(Grid([result] * 3), space, RunSettings())
    assert [(trial.name, trial.values["training.lr"]) for trial in found] == [
        ("1", "1_lr=3"),
        ("2", "2_lr=2"),
        ("3", "10_lr=1"),
    ]


def test_table_plot_recipe_and_model_of_the_best_are_written(trials, tmp_path):
    console = Console(width=160, record=True)
    recipe = build({"training": {"lr": 1e-5}, "run": {"iterations": 2}})
    for _ in range(2):  # a second time replaces the first
        write_results(trials, recipe, tmp_path, console)
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert best == {"training": {"lr": 0.01, "group_size": 4}, "run": {"iterations": 2}}
    assert build(best).config.lr == 0.01
    assert (tmp_path / "best_model" / "config.json").read_text() == "2"
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert lines[0] == "trial,training.lr,training.group_size,ndcg@10,iterations,checkpoint,failed"
    assert lines[3] == "3,0.001,4,,2,,CUDA is out of memory"
    shown = console.export_text()
    assert "CUDA is out of memory" in shown and shown.index("50.0") < shown.index("30.0")


def test_the_table_has_the_best_first_and_those_without_a_score_last(trials, tmp_path):
    console = Console(width=160, record=True)
    write_results(trials, build({"training": {"lr": 1e-5}}), tmp_path, console)
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert "".join(row[0] for row in rows) == "213"
    assert [row[4] for row in rows] == ["50.0", "30.0", "20.0"]
    assert (tmp_path / "best_model" / "config.json").read_text() == "2"


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("Traceback\n  stack\nValueError: lr is -1", "ValueError: lr is -1"),
        (
            "Task was killed.\n1 worker(s) were killed due to the node running low on memory. 22 GB"
            "\nRefer to the documentation",
            "1 worker(s) were killed due to the node running low on memory. 22 GB",
        ),
        ("Traceback\n    assert x == 1\nAssertionError", "AssertionError at assert x == 1"),
        ("", ""),
    ],
)
def test_the_cause_of_a_failed_trial_is_one_line(said, cause):
    assert cause_of(RuntimeError(said)) == cause


def test_the_end_of_an_actors_log_is_not_the_cause():
    said = (
        f"Traceback\nDeadlineError: learner 0 did not start{HEADING} learner 0:\n  loading weights"
    )
    assert cause_of(RuntimeError(said)) == "DeadlineError: learner 0 did not start"

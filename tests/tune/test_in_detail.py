"""What the other tests of these parts leave open."""

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from rich.console import Console

from starec_ray.cluster.actor_logs import HEADING
from starec_ray.config.fields import RunSettings
from starec_ray.config.recipe import build
from starec_ray.errors import ConfigError
from tests.tune.test_results import trial, trials
from tests.tune.test_space import pbt, read
from tune import results as module
from tune.population import population
from tune.results import cause_of, read_trials, write_results
from tune.space import Space, SweepSettings, load_space


@pytest.mark.parametrize(
    ("mode", "order", "seen"),
    [("max", "213", ["50.0", "30.0", "20.0"]), ("min", "123", ["10.0"] * 3)],
)
def test_the_table_has_the_best_first_and_those_without_a_score_last(
    trials, tmp_path, mode, order, seen
):
    console = Console(width=160, record=True)
    recipe = build({"training": {"lr": 1e-5}, "run": {"mode": mode}})
    write_results(trials, recipe, tmp_path, console)
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert "".join(row[0] for row in rows) == order
    assert [row[4] for row in rows] == seen
    assert (tmp_path / "best_model" / "config.json").read_text() == order[0]


@pytest.mark.parametrize(("mode", "best"), [("max", "3"), ("min", "2")])
def test_of_a_trials_checkpoints_the_best_is_taken_and_of_equals_the_newest(mode, best):
    scores = [0.5, 0.1, 0.5, None] if mode == "max" else [0.1, 0.1, 0.5, None]
    kept = [
        (SimpleNamespace(path=str(number)), {"score": score} if score is not None else {})
        for number, score in enumerate(scores, start=1)
    ]
    checkpoint, then = module._best_checkpoint(
        SimpleNamespace(best_checkpoints=kept), "score", mode
    )
    assert checkpoint.name == best
    assert then == {"score": 0.5 if mode == "max" else 0.1}
    assert module._best_checkpoint(SimpleNamespace(best_checkpoints=None), "score", mode) == (
        None,
        {},
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"space": {"training.lr": {"uniform": [1e-5, 1e-5]}}}, "from low to high"),
        (
            {"space": {"training.lr": {"choice": [1e-5]}}, "sweep": {"max_concurrent": -1}},
            "sweep.max_concurrent is -1",
        ),
        (
            {"space": {"training.lr": {"choice": [1e-5]}}, "sweep": {"grace_iterations": 0}},
            "sweep.grace_iterations is 0",
        ),
    ],
)
def test_what_is_wrong_with_a_space_is_said_before_anything_starts(tmp_path, content, told):
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, content)


def test_a_population_without_any_anchor_is_one_too(tmp_path):
    assert read(
        tmp_path, pbt({"training.kl_coeff": {"choice": [0]}, "training.lr": {"choice": [1e-5]}})
    )


def test_a_population_perturbs_after_the_iterations_asked_for():
    fields = {"training.lr": {"loguniform": [1e-6, 1e-4]}}
    space = Space(SweepSettings(scheduler="pbt", grace_iterations=7), fields)
    assert population(space, "iterations_done")._perturbation_interval == 7


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


def test_the_end_of_an_actors_log_is_not_the_cause():
    said = (
        f"Traceback\nDeadlineError: learner 0 did not start{HEADING} learner 0:\n  loading weights"
    )
    assert cause_of(RuntimeError(said)) == "DeadlineError: learner 0 did not start"


@pytest.mark.parametrize(
    ("cpus", "decision"), [(2, TrialScheduler.CONTINUE), (1, TrialScheduler.PAUSE)]
)
def test_a_trial_is_paused_only_to_make_room_for_another(monkeypatch, cpus, decision):
    monkeypatch.setattr(PopulationBasedTraining, "on_trial_result", lambda *_: TrialScheduler.PAUSE)
    monkeypatch.setattr("tune.population.ray.cluster_resources", lambda: {"CPU": cpus})
    place = SimpleNamespace(required_resources={"CPU": 1})
    going, ended = (
        SimpleNamespace(is_finished=lambda done=done: done, placement_group_factory=place)
        for done in (False, True)
    )
    controller = SimpleNamespace(get_trials=lambda: [ended, going, going])
    space = Space(SweepSettings(scheduler="pbt"), {"training.lr": {"uniform": [1e-6, 1e-4]}})
    scheduler = population(space, "iterations_done")
    assert scheduler.on_trial_result(controller, going, {}) == decision


@pytest.mark.parametrize("sweep", ["[1]", "3", "{3: 1}"])
def test_a_sweep_that_is_no_section_is_refused(tmp_path, sweep):
    (tmp_path / "space.yaml").write_text(
        f"sweep: {sweep}\nspace: {{training.lr: {{choice: [1.0e-5]}}}}"
    )
    with pytest.raises(ConfigError, match=r"may hold `sweep`|unknown key sweep\.3"):
        load_space(tmp_path / "space.yaml", build({}))


def test_a_folder_is_no_space(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        load_space(tmp_path, build({}))

"""A stopped sweep under the real Tune, of trials that train nothing."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import ray
import yaml
from ray import tune
from rich.console import Console

from starec_ray.algorithm import MODEL
from starec_ray.config.recipe import build, with_values
from starec_ray.errors import ConfigError
from tests.tiny_recipe import tiny_recipe
from tune import sweep as module
from tune.space import Space, SweepSettings
from tune.sweep import STATES, TRIALS, sweep
from tune.trial import metric_path

pytestmark = pytest.mark.engine

RATES = [1e-5, 2e-5, 3e-5]
SPACE = Space(
    SweepSettings(num_samples=1, scheduler="none", max_concurrent=1),
    {"training.lr": {"grid": RATES}},
)


def stopping_trial(folder: Path) -> type[tune.Trainable]:
    """Trials that write down what they are given; the second one, once, has the sweep stopped while
    it runs."""
    driver = os.getpid()

    class Stopping(tune.Trainable):
        @classmethod
        def default_resource_request(cls, config: dict) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([{"CPU": config["num_cpus_per_env_runner"]}])

        def setup(self, config: dict) -> None:
            self.rate = config["lr"]
            cpus = ray.get_runtime_context().get_assigned_resources()["CPU"]
            with (folder / "begun").open("a") as file:
                print(self.rate, config["start_timeout_s"], cpus, file=file)

        def step(self) -> dict:
            if self.rate == RATES[1] and not (folder / "stopped").exists():
                (folder / "stopped").touch()
                os.kill(driver, signal.SIGINT)
                time.sleep(60)
            users = {"ndcg@10": self.rate}
            return {
                "iterations_done": self.iteration + 1,
                "evaluation": {"validation": users},
                metric_path("ndcg@10"): self.rate,
            }

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            (Path(checkpoint_dir) / MODEL).mkdir()

        def load_checkpoint(self, checkpoint_dir: str) -> None: ...

    return Stopping


@pytest.fixture
def recipe(small_world, tiny_model):
    return tiny_recipe(
        small_world,
        tiny_model,
        None,
        anchor={"anchor_epochs": 0},
        run={"iterations": 1, "checkpoint_every": 1, "checkpoint_storage": "file:///nowhere"},
    )


@pytest.fixture
def stopped(recipe, ray_cluster, tmp_path, monkeypatch):
    """The folder of a sweep that was stopped (Ctrl-C) in its second trial, and what it told."""
    monkeypatch.setattr(module, "SweepTrial", stopping_trial(tmp_path))
    console, out = Console(width=160, record=True), tmp_path / "sweep"
    with pytest.raises(KeyboardInterrupt):
        sweep(recipe, SPACE, out, console)
    return out, console.export_text()


def begun(out: Path) -> list[list[float]]:
    """Of each start of a trial its rate, its start_timeout_s and its CPUs."""
    lines = (out.parent / "begun").read_text().splitlines()
    return [[float(word) for word in line.split()] for line in lines]


def table(out: Path) -> list[float]:
    """The rates of the trials that came to a score."""
    rows = csv.DictReader((out / "trials.csv").open())
    return [float(row["training.lr"]) for row in rows if row["ndcg@10"]]


def test_a_stopped_sweep_has_no_result_and_goes_on_with_other_actors_and_deadlines(recipe, stopped):
    out, told = stopped
    assert "stopped: 1 of 3 trials are finished; --resume goes on." in told
    assert "best" not in told.replace("best seen", "") and not (out / "best.yaml").exists()
    assert table(out) == RATES[:1]
    other = {"fault_tolerance.start_timeout_s": 77.0, "env_runners.num_cpus_per_env_runner": 3}
    changed = build(with_values(recipe.sections, other))
    sweep(changed, SPACE, out, Console(quiet=True), resume=True)
    assert begun(out) == [
        *([rate, recipe.config.start_timeout_s, 1] for rate in RATES[:2]),
        *([rate, 77, 3] for rate in RATES[1:]),
    ]
    assert table(out) == RATES
    best = yaml.safe_load((out / "best.yaml").read_text())
    assert best["training"]["lr"] == RATES[2]
    assert best["run"]["checkpoint_storage"] == ""  # which is the sweep's own


def test_without_a_state_of_tunes_all_trials_are_begun(recipe, stopped):
    out, _ = stopped
    for state in (out / TRIALS).glob(STATES):
        state.unlink()
    sweep(recipe, SPACE, out, Console(quiet=True), resume=True)
    assert [rate for rate, *_ in begun(out)][2:] == table(out) == RATES


def test_what_tune_can_not_read_ends_the_sweep_before_it_begins_anew(recipe, stopped):
    out, _ = stopped
    [drawn] = (out / TRIALS).glob("basic-variant-state-*")
    drawn.write_bytes(drawn.read_bytes()[:100])
    before = {path: path.read_bytes() for path in (out / TRIALS).glob("*state*")}
    with pytest.raises(ConfigError, match=r"can't go on from .*experiment_state-.*Move .*\*state-"):
        sweep(recipe, SPACE, out, Console(quiet=True), resume=True)
    assert {path: path.read_bytes() for path in (out / TRIALS).glob("*state*")} == before
    assert len(begun(out)) == 2 and table(out) == RATES[:1]

"""Which trials Tune starts again, under the real Tune, of trials that train nothing."""

import csv
import pickle
from collections import Counter
from pathlib import Path

import pytest
from ray import tune
from rich.console import Console

from starec_ray.algorithm import MODEL
from starec_ray.errors import CollapseError, ConfigError
from starec_ray.training.learner_calls import LearnersLostError
from starec_ray.training.recovery import MOST_REPEATED_LOSSES
from tests.tiny_recipe import tiny_recipe
from tune import sweep as module
from tune.silence import Silence
from tune.space import Space, SweepSettings
from tune.sweep import sweep
from tune.trial import Restarts, metric_path

KINDS = [
    "loses its learners in a save",
    "loses them in the restore too",
    "loses them in each save",
    "can't be set up",
    "collapses",
]
STARTS = [2, 3, MOST_REPEATED_LOSSES, 1, 1]


def failing_trial(folder: Path) -> type[tune.Trainable]:
    """Trials of two iterations, of as many kinds as there are values of `lr`."""

    class Failing(tune.Trainable):
        @classmethod
        def default_resource_request(cls, config: dict) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([{"CPU": 1}])

        def setup(self, config: dict) -> None:
            self.kind = KINDS[int(config["lr"]) - 1]
            self.count("began")
            if self.kind == "can't be set up":
                raise ConfigError(self.kind)

        def step(self) -> dict:
            if self.kind == "collapses" and self.iteration == 1:
                raise CollapseError(self.kind)
            score = 0.1 * (self.iteration + 1)
            return {
                "iterations_done": self.iteration + 1,
                "evaluation": {"validation": {"ndcg@10": score}},
                metric_path("ndcg@10"): score,
            }

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            if self.iteration == 2 and "loses" in self.kind:
                self.lose("save", always="each" in self.kind)
            (Path(checkpoint_dir) / MODEL).mkdir()

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            if "restore" in self.kind:
                self.lose("restore")

        def lose(self, what: str, *, always: bool = False) -> None:
            if self.count(what) == 1 or always:
                raise LearnersLostError(f"learner 0 died in a {what}")

        def count(self, what: str) -> int:
            with (folder / what).open("a") as file:
                print(self.kind, file=file)
            return (folder / what).read_text().splitlines().count(self.kind)

    return Failing


@pytest.mark.engine
def test_a_trial_is_started_again_where_that_may_help(
    small_world, tiny_model, ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "SweepTrial", failing_trial(tmp_path))
    recipe = tiny_recipe(
        small_world,
        tiny_model,
        None,
        anchor={"anchor_epochs": 0},
        run={"iterations": 2, "checkpoint_every": 1},
    )
    rates = [float(number) for number, _ in enumerate(KINDS, start=1)]
    space = Space(SweepSettings(num_samples=1, scheduler="none"), {"training.lr": {"grid": rates}})
    sweep(recipe, space, tmp_path / "sweep", Console(quiet=True))
    began = Counter((tmp_path / "began").read_text().splitlines())
    assert [began[kind] for kind in KINDS] == STARTS
    table = list(csv.DictReader((tmp_path / "sweep" / "trials.csv").open()))
    assert [row["iterations"] for row in table] == ["2", "2", "2", "0", "1"]
    assert [row["ndcg@10"] for row in table] == ["0.2", "0.2", "0.1", "", "0.1"]
    told = [row["failed"].rpartition(": ")[2] for row in table]
    assert told == ["", "", "learner 0 died in a save", "can't be set up", "collapses"]


class Trial:
    """Of Tune, as far as it is looked at."""

    num_failures, max_failures = 0, 0
    is_saving = True
    is_restoring = False

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def test_a_trial_that_was_ended_is_not_started_again():
    silence = Silence(silence_s=1.0, start_s=1.0, bundles=[])
    # As Tune keeps them for a sweep that is resumed.
    silence, restarts = pickle.loads(pickle.dumps([silence, Restarts(silence.ended)]))
    silence.ended.add("hung")
    trials = [Trial("hung"), Trial("well")]
    restarts.on_step_begin(1, trials)
    assert [trial.max_failures for trial in trials] == [0, 1]

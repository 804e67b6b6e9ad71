"""Sweeps of real trials: a population that copies, and searched trials that lose and fail."""

import csv
import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import ray.tune
import yaml
from ray.core.generated.gcs_pb2 import ActorTableData
from rich.console import Console
from safetensors.torch import load_file

from starec_ray.algorithm import MODEL
from starec_ray.config.recipe import Recipe, build
from tests.tiny_recipe import tiny_recipe
from tune import sweep as sweep_module
from tune.population import COPIED
from tune.results import read_trials
from tune.space import Space, SweepSettings
from tune.sweep import TRIALS, sweep
from tune.trial import SweepTrial

pytestmark = pytest.mark.engine

LIMIT_S = 120.0
WEIGHTS = "model.safetensors"
LEARNER = "_WrappedExecutable"


@pytest.fixture
def recipe(small_world, tiny_model) -> Recipe:
    return tiny_recipe(
        small_world,
        tiny_model,
        None,
        anchor={"anchor_epochs": 0},
        rewards={"num_reward_actors": 1},
        training={"cases_per_iteration": 4, "group_size": 4, "reflect_share": 0.0},
        env_runners={"num_env_runners": 1},
        learners={"num_learners": 1},
        run={"checkpoint_every": 0, "evaluate": False, "seed": 3},
    )


def copying_trial(folder: Path) -> type[SweepTrial]:
    """Of two trials the second one ranks better, and the first one copies its second iteration,
    and starts again while the second one does its third. They wait for each other, so that
    nothing depends on which of them is faster."""

    def tell(what: str) -> None:
        (folder / what).touch()

    def wait_for(what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not (folder / what).exists():
            assert time.monotonic() < deadline, what
            time.sleep(0.05)

    class Copying(SweepTrial):
        @property
        def number(self) -> int:
            return int("_00001_" in Path(self._storage.trial_fs_path).name)

        def setup(self, config: object) -> None:
            if self.number == 0 and (folder / "trial 0 did 0").exists():
                tell("copies")
            super().setup(config)

        def step(self) -> dict:
            done = self.iterations_done
            tell(f"trial {self.number} did {done}")
            if done == 0:
                wait_for(f"trial {1 - self.number} did 0")
            elif (self.number, done) == (1, 1):
                wait_for("trial 0 did 1")  # else there is none yet that it is better than
            elif (self.number, done) == (0, 1):
                wait_for("trial 1 did 2")
            elif (self.number, done) == (1, 2):
                wait_for("copies")
            elif (self.number, done) == (0, 2):
                wait_for("trial 1 ended")  # else it would copy it again
            return super().step()

        def cleanup(self) -> None:
            tell(f"trial {self.number} ended")
            super().cleanup()

        def evaluate(self, *args: object, **kwargs: object) -> dict:
            found = super().evaluate(*args, **kwargs)
            found["validation"]["ndcg@10"] = float(self.number)
            return found

        def restore(self, checkpoint_path: object) -> None:
            super().restore(checkpoint_path)
            self.save_model(folder / "restored")
            copied = Path(checkpoint_path.checkpoint.path)
            # Not the other one's, which may be gone before this one's engines are up.
            assert copied == Path(self._storage.trial_fs_path) / COPIED
            shutil.copytree(copied / MODEL, folder / "source")

    return Copying


def test_a_trial_that_falls_behind_goes_on_with_the_weights_of_a_better_one_and_other_values(
    recipe, ray_cluster, tiny_model, tmp_path, monkeypatch
):
    recipe.sections["run"]["iterations"] = 4
    recipe.sections["model"]["constrained_decoding"] = True  # else it has nothing to learn from
    recipe.sections["learners"]["num_learners"] = 0  # in the trial's own process
    kind = copying_trial(tmp_path)
    monkeypatch.setattr(sweep_module, "SweepTrial", kind)
    fields = {
        "training.lr": {"loguniform": [1e-3, 1e-1]},
        "rewards.reward_shape": {"choice": ["tiers", "ndcg"]},
    }
    space = Space(SweepSettings(num_samples=2, scheduler="pbt", grace_iterations=1), fields)
    out = tmp_path / "sweep"
    behind, better = sweep(build(recipe.sections), space, out, Console(quiet=True))

    [copy] = (out / TRIALS / "pbt_global.txt").read_text().splitlines()
    before, after = json.loads(copy)[-2:]
    assert after["lr"] != before["lr"] == better.values["training.lr"]
    source = load_file(tmp_path / "source" / WEIGHTS)
    restored = load_file(tmp_path / "restored" / WEIGHTS)
    untrained = load_file(tiny_model / WEIGHTS)
    assert all((restored[name] == source[name]).all() for name in source)
    shared = source.keys() & untrained.keys()
    assert any((source[name] != untrained[name]).any() for name in shared)
    [first] = (out / TRIALS).glob("*_00000_*")
    [next_result] = [r for r in results_of(first) if r["iterations_done"] == 3]
    assert next_result["lr"] == next_result["config"]["lr"] == after["lr"]

    # The table and best.yaml tell the values of the checkpoint, not those that it began with.
    assert behind.values == {
        "training.lr": after["lr"],
        "rewards.reward_shape": after["reward_shape"],
    }
    kept = ray.tune.Tuner.restore(str(out / TRIALS), kind).get_results()
    assert read_trials(kept, space, recipe.run) == [behind, better]
    best = build(yaml.safe_load((out / "best.yaml").read_text()))
    assert best.config.lr == better.values["training.lr"]

    # The better one wasn't stopped while the other started again.
    assert sum(actors["Copying"] for actors in actors_by_place("Copying")) == 3


def losing_trial(folder: Path) -> type[SweepTrial]:
    """A trial that loses its learner in its second iteration; what is found after the first is
    better than what is found after the second."""

    class Losing(SweepTrial):
        def step(self) -> dict:
            marker = folder / "lost"
            if self.iterations_done == 1 and not marker.exists():
                marker.write_text(self._storage.trial_fs_path)
                ray.kill(self.learners.group._workers[0])
            return super().step()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            with (folder / "saved").open("a") as file:
                print(checkpoint_dir, file=file)
            super().save_checkpoint(checkpoint_dir)

        def evaluate(self, *args: object, **kwargs: object) -> dict:
            found = super().evaluate(*args, **kwargs)
            found["validation"]["ndcg@10"] = 0.9 if self.iterations_done == 1 else 0.1
            return found

    return Losing


def test_a_trial_goes_on_without_its_learner_and_one_that_cannot_be_run_tells_why(
    recipe, ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(sweep_module, "SweepTrial", losing_trial(tmp_path))
    recipe.sections["run"] |= {"iterations": 2, "checkpoint_every": 1}
    fields = {
        "training.lr": {"loguniform": [1e-3, 1e-2]},
        "rewards.credit_assignment": {"choice": ["reply", "candidate"]},
    }
    settings = SweepSettings(num_samples=2, searcher="optuna", grace_iterations=1)
    out = tmp_path / "sweep"
    sweep(build(recipe.sections), Space(settings, fields), out, Console(quiet=True))

    table = list(csv.DictReader((out / "trials.csv").open()))
    kinds = [trial["rewards.credit_assignment"] for trial in table]
    assert sorted(kinds) == ["candidate", "reply"]
    for trial in table:
        told = "only constrained grades say of each candidate" in trial["failed"]
        assert told == (trial["rewards.credit_assignment"] == "candidate")
        assert trial["ndcg@10"] == ("" if told else "0.9")  # the best checkpoint is kept
    trial = Path((tmp_path / "lost").read_text())
    results = results_of(trial)
    assert [result["iterations_done"] for result in results] == [1, 2]
    assert results[-1]["failures/learner"] == 1
    # Learners on other nodes see the trial's folder, and not one of a node's own.
    saved = [Path(folder) for folder in (tmp_path / "saved").read_text().splitlines()]
    assert saved and {folder.parent for folder in saved} == {trial}
    assert not any(folder.exists() for folder in saved)  # Tune has copies

    # All that a trial starts lies in its own place; the learner was started twice.
    [actors] = [actors for actors in actors_by_place("Losing") if len(actors) > 1]
    assert actors["VLLMEnvRunner"] == actors["RewardActor"] == 1
    assert actors[LEARNER] == 2


def results_of(trial: Path) -> list[dict]:
    """What a trial reported, an iteration each."""
    return [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]


def actors_by_place(kind: str) -> list[Counter]:
    """The actors of each placement group that holds one of a kind, those that ended too."""
    table = ray._private.state.state._connect_and_get_accessor().get_actor_table(None, None)
    places: dict[bytes, Counter] = {}
    for actor in map(ActorTableData.FromString, table):
        name = actor.class_name.rpartition(".")[2]
        places.setdefault(actor.placement_group_id, Counter())[name] += 1
    return [actors for place, actors in places.items() if place and actors[kind]]

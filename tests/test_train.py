"""Learners that are lost again and again, without any engine: when does a run give up?"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from starec_ray import train
from starec_ray.checkpoints import FORMAT, PROGRESS, Checkpoints
from starec_ray.failures import TooManyFailuresError
from starec_ray.learner_calls import LearnersLostError
from starec_ray.run_dir import RunDir
from tests.tiny_recipe import tiny_recipe

RECOVERIES = 20  # a run that goes on for ever does so in this test no more often


class Learning:
    """Counts iterations; `loses` says whether the learners are lost in one, by its number and
    the loss's."""

    stage = "reinforce"
    latest_rollouts = None

    def __init__(self, loses) -> None:
        self.loses = loses
        self.losses = 0
        self.training_iteration = 0
        self.dataset = SimpleNamespace(items={})
        numbers = dict.fromkeys(("rank/reward", "rank/ndcg@10", "rank/malformed"), 0.0)
        self.report = {"stage": self.stage, **numbers}

    @property
    def iterations_done(self) -> int:
        return self.training_iteration

    def train(self) -> dict:
        if self.loses(self.training_iteration + 1, self.losses):
            self.losses += 1
            assert self.losses < RECOVERIES
            raise LearnersLostError(f"learner 0 failed: out of memory, number {self.losses}")
        self.training_iteration += 1
        return {}

    def save_model(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def save_to_path(self, path: Path) -> str:
        path.mkdir()
        state = {"format": FORMAT, "training_iteration": self.training_iteration}
        (path / PROGRESS).write_text(json.dumps(state))
        return str(path)

    def restore_from_path(self, path: Path) -> None:
        self.training_iteration = json.loads((path / PROGRESS).read_text())["training_iteration"]

    def start_over(self) -> None:
        self.training_iteration = 0


def learn(algo: Learning, path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train, "_write_rollouts", lambda *args: None)
    recipe = tiny_recipe(path, path, None, run={"iterations": 12, "checkpoint_every": 5})
    run = RunDir(path / "run")
    checkpoints = Checkpoints(run.checkpoints, keep=2)
    train._train(algo, recipe, run, checkpoints, Console(quiet=True), None)


def test_learners_that_are_lost_at_once_each_time_end_the_run_with_the_cause(tmp_path, monkeypatch):
    algo = Learning(lambda iteration, losses: True)
    with pytest.raises(TooManyFailuresError, match=r"3 times in iteration 1.*memory, number 3"):
        learn(algo, tmp_path, monkeypatch)


def test_learners_that_are_lost_in_the_same_iteration_each_time_end_the_run(tmp_path, monkeypatch):
    algo = Learning(lambda iteration, losses: iteration == 8)  # three behind its checkpoint
    with pytest.raises(TooManyFailuresError, match=r"3 times in iteration 8.*memory, number 3"):
        learn(algo, tmp_path, monkeypatch)


def test_learners_that_are_lost_here_and_there_do_not(tmp_path, monkeypatch):
    places = [2, 2, 4, 7, 6, 9, 8, 11, 12]
    algo = Learning(lambda iteration, losses: losses < len(places) and iteration == places[losses])
    learn(algo, tmp_path, monkeypatch)
    assert (algo.losses, algo.training_iteration) == (len(places), 12)

"""Learners that are lost again and again, without any engine: when does a run give up?"""

import io
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.rllib.utils.metrics import EVALUATION_RESULTS
from rich.console import Console

from starec_ray.checkpoints.checkpoints import SCORE, Checkpoints
from starec_ray.checkpoints.files import FORMAT, PROGRESS, write_manifest
from starec_ray.cluster.failures import TooManyFailuresError
from starec_ray.config.recipe import build, changed_keys, load_recipe, resolved_sections
from starec_ray.errors import CollapseError
from starec_ray.jobs.training_run import TrainingRun, score_of
from starec_ray.run_dir import LAST_BATCH, RunDir
from starec_ray.training.alarms import Alarms
from starec_ray.training.learner_calls import LearnersLostError
from tests.tiny_recipe import tiny_recipe

RECOVERIES = 20  # a run that goes on for ever does so in this test no more often


class Learning:
    """Counts iterations; `loses` says whether the learners are lost in one, by its number and
    the loss's."""

    stage = "reinforce"
    latest_rollouts = pa.table({})

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
        state = {
            "format": FORMAT,
            "training_iteration": self.training_iteration,
            "anchored": self.stage == "reinforce",
        }
        (path / PROGRESS).write_text(json.dumps(state))
        write_manifest(path)
        return str(path)

    def restore_from_path(self, path: Path) -> None:
        self.training_iteration = json.loads((path / PROGRESS).read_text())["training_iteration"]

    def start_over(self) -> None:
        self.training_iteration = 0


def learn(
    algo: Learning,
    path: Path,
    monkeypatch,
    *,
    iterations: int = 12,
    evaluation_interval: int = 0,
    console: Console | None = None,
) -> RunDir:
    monkeypatch.setattr(RunDir, "write_rollouts", lambda *args: None)
    recipe = tiny_recipe(path, path, None, run={"iterations": iterations, "checkpoint_every": 5})
    recipe.config.evaluation(evaluation_interval=evaluation_interval)
    run = RunDir(path / "run")
    checkpoints = Checkpoints(run.checkpoints, keep=0 if evaluation_interval else 2)
    told = console or Console(quiet=True)
    TrainingRun(algo, recipe, run, checkpoints, told).complete(None)
    return run


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


class Evaluated(Learning):
    """Eight iterations of stage one, then stage two; validation users are asked in every fifth of
    both, and rank better each time."""

    anchor_iterations = 8

    @property
    def stage(self) -> str:
        return "anchor" if self.training_iteration < self.anchor_iterations else "reinforce"

    @property
    def iterations_done(self) -> int:
        return max(0, self.training_iteration - self.anchor_iterations)

    def train(self) -> dict:
        self.report = self.report | {"stage": self.stage}
        super().train()
        number = self.training_iteration
        users = (
            {"validation": {"ndcg@10": number / 100, "malformed_rate": 0.0}}
            if number % 5 == 0
            else {}
        )
        return {EVALUATION_RESULTS: users}


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (3, "2 iterations are done, none is in a checkpoint yet: --resume starts over"),
        (8, "7 iterations are done; --resume goes on after iteration 5"),
    ],
)
def test_a_run_that_is_ended_by_hand_tells_from_where_it_can_go_on(at, told, tmp_path, monkeypatch):
    class Ended(Evaluated):
        def train(self) -> dict:
            if self.training_iteration + 1 == at:
                raise KeyboardInterrupt
            return super().train()

    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(KeyboardInterrupt):
        learn(Ended(lambda iteration, losses: False), tmp_path, monkeypatch, console=console)
    assert f"stopped: {told}." in console.file.getvalue()


@pytest.mark.parametrize(
    ("anchor_iterations", "scored"),
    [(8, [0.05, None, 0.1, 0.15, 0.2]), (10, [0.05, 0.1, 0.15, 0.2])],
)
def test_what_is_evaluated_every_few_iterations_is_what_a_checkpoint_is_compared_by(
    anchor_iterations, scored, tmp_path, monkeypatch
):
    algo = Evaluated(lambda iteration, losses: False)
    algo.anchor_iterations = anchor_iterations
    iterations = 20 - anchor_iterations
    run = learn(algo, tmp_path, monkeypatch, iterations=iterations, evaluation_interval=5)
    kept = [path / SCORE for path in Checkpoints(run.checkpoints, keep=0).all()]
    assert [json.loads(path.read_text()) if path.exists() else None for path in kept] == scored


class Collapsing(Learning):
    """Its KL grows until the alarm goes off, in the iteration after a KL of 0.7."""

    latest_update = pa.table({"case_id": ["the offending one"]})

    def __init__(self, config) -> None:
        super().__init__(lambda iteration, losses: False)
        self.config = config
        self.alarms = Alarms(config)

    def train(self) -> dict:
        self.report["kl"] = (self.training_iteration + 1) / 10
        self.alarms.check({"kl": self.report["kl"], "skipped": 0.0})
        return super().train()


def test_a_run_that_collapses_ends_with_its_batch_and_a_way_back_that_is_open(
    tmp_path, monkeypatch
):
    sections = {"training": {"lr": 1e-4}, "fault_tolerance": {"max_kl": 0.75}}
    recipe = build(tiny_recipe(tmp_path, tmp_path, None).sections | sections)
    run = RunDir(tmp_path / "run")
    run.write_config(resolved_sections(recipe))
    with pytest.raises(CollapseError, match=r"kl is 0.8, above its limit 0\.75") as raised:
        learn(Collapsing(recipe.config), tmp_path, monkeypatch)

    lines = run.read_metrics()
    assert [line["iteration"] for line in lines] == list(range(1, 9)) and lines[-1]["kl"] == 0.8
    assert pq.read_table(run.path / LAST_BATCH).to_pylist() == [{"case_id": "the offending one"}]
    assert f"The last healthy checkpoint is {run.checkpoints / 'iteration-00005'}." in str(
        raised.value
    )
    command = shlex.split(str(raised.value).partition("starec train ")[2])
    assert command[2:] == ["--run-dir", str(run.path), "--resume", "--from", "iteration-00005"]
    slower = load_recipe(command[0], [command[1]])
    assert slower.config.lr == 5e-5
    assert changed_keys(run.read_config(), resolved_sections(slower)) == []


@pytest.mark.parametrize(
    ("max_kl", "told"), [(0.55, r"is .*iteration-00000\. "), (0.05, "No checkpoint is from before")]
)
def test_a_checkpoint_of_the_weights_that_set_off_the_alarm_is_no_way_back(
    max_kl, told, tmp_path, monkeypatch
):
    sections = tiny_recipe(tmp_path, tmp_path, None).sections
    recipe = build(sections | {"fault_tolerance": {"max_kl": max_kl}})
    with pytest.raises(CollapseError, match=told) as raised:  # in iteration 6, and in the first
        learn(Collapsing(recipe.config), tmp_path, monkeypatch)
    assert ("a larger training.kl_coeff" in str(raised.value)) == (max_kl == 0.55)


@pytest.mark.parametrize(
    ("interval", "iteration", "score"), [(0, 2, None), (2, 3, None), (2, 4, 0.7), (1, 3, 0.7)]
)
def test_checkpoints_are_compared_on_the_users_of_evaluation_interval_alone(
    interval, iteration, score
):
    recipe = build({"evaluation": {"evaluation_interval": interval}, "run": {"metric": "mrr"}})
    line = {"iteration": iteration, "validation": {"ndcg@10": 0.5, "mrr": 0.7}}
    assert score_of(line, recipe) == score

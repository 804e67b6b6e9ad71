"""The algorithm from Python, on real engines: it learns, and outlives env runners that are lost."""

import os
import signal
import time
from functools import partial

import pyarrow as pa
import pytest
import ray

from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask
from starec_ray.rollouts.ledger import Ledger
from starec_ray.rollouts.sampling import RunnerPool
from tests.exact_logprobs import largest_gap
from tests.processes import wait_until_gone
from tests.small_world import dataset, write_random_traces
from tests.tiny_recipe import tiny_recipe
from tests.waiting import wait_until

pytestmark = pytest.mark.engine

TASKS = [RankTask(f"u{user}/0", "Likes Alpha.") for user in range(4)]
LIMIT_S = 240.0
ITERATIONS = 14


def sampled_by_both(runners: RunnerPool, seed: int) -> pa.Table:
    """Rollouts of `TASKS`, once a runner that was lost is back."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        sampled = runners.sample(TASKS, rollouts=2, temperature=1.0, seed=seed)
        if len(runners._current) == 2:
            return sampled
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def algo(small_world, tiny_model, tmp_path_factory, ray_cluster):
    """Two ZeRO-3 learners that broadcast to two env runners, after stage one."""
    agent = Agent.from_config(
        tiny_recipe(small_world, tiny_model, None).config, dataset(small_world)
    )
    traces = write_random_traces(tmp_path_factory.mktemp("traces") / "t.parquet", agent, 192)
    recipe = tiny_recipe(
        small_world,
        tiny_model,
        traces,
        model={"constrained_decoding": True},
        # Then steps that no rounding turns into another run.
        training={"lr": [[0, 2e-3], [ITERATIONS - 1, 2e-3], [ITERATIONS, 2e-4]]},
        learners={"zero_stage": 3},
        env_runners={"weight_transfer": "gloo"},
    )
    told = []  # by RLlib's callbacks
    recipe.config.callbacks(
        on_evaluate_start=lambda **given: told.append("start"),
        on_evaluate_end=lambda evaluation_metrics, **given: told.append(evaluation_metrics),
    )
    algo = recipe.config.resolve().build_algo()
    algo.told = told
    try:
        algo.untrained = algo.evaluate(limit=4)["validation"]
        while algo.stage == "anchor":
            algo.train()
        yield algo
    finally:
        algo.stop()


def test_learners_start_while_the_env_runners_do(algo):
    actors = [
        *algo.env_runner_group._worker_manager.actors().values(),
        *algo.learner_group._workers,
    ]
    times = [ray._private.state.actors(a._actor_id.hex())["StartTime"] for a in actors]
    assert max(times[2:]) < min(times[:2])  # an env runner's is when its engine is up


def test_the_reward_rises_and_rankings_are_better_than_the_untrained_ones(algo):
    lines = []
    for _ in range(ITERATIONS):
        result = algo.train()
        lines.append(algo.report)
        assert result["rank/reward"] == algo.report["rank/reward"]
        assert "traces_too_long" not in result  # stage one's
    assert lines[-1]["rank/reward"] > lines[0]["rank/reward"] + 0.1
    for line in lines:
        assert line["stage"] == "reinforce" and line["rank/malformed"] == 0
        assert line["ratio_mean"] == pytest.approx(1.0, abs=0.05)
        assert line["kl"] >= 0 and line["reflect/reward"] >= -1
    found = algo.evaluate(limit=4)
    assert found["validation"]["ndcg@10"] > algo.untrained["ndcg@10"]
    assert algo.told[-2:] == ["start", found]


def test_broadcast_weights_are_exact_also_after_a_runner_was_lost_in_the_middle(
    algo, tmp_path, monkeypatch
):
    algo.save_model(tmp_path / "model")
    version, group = algo.runners.weight_version, algo.transfer._group
    both = algo.runners.sample(TASKS, rollouts=2, temperature=1.0, seed=0)
    assert set(both["weight_version"].to_pylist()) == {version}
    assert largest_gap(tmp_path / "model", both) < 1e-4
    assert "weight_transfer/load" in algo.report

    algo._sync_weights()
    assert algo.transfer._group == group

    pids = algo.env_runner_group.foreach_env_runner(lambda runner: os.getpid())
    call = algo.runners._call_in_time

    def kill_one_before_it_receives(method, requests):
        if method == "load_weights":
            os.kill(pids[0], signal.SIGKILL)
        return call(method, requests)

    with monkeypatch.context() as patch:
        patch.setattr(algo.runners, "_call_in_time", kill_one_before_it_receives)
        algo._sync_weights()
    again = sampled_by_both(algo.runners, seed=1)
    assert set(again["weight_version"].to_pylist()) == {version + 2}
    assert largest_gap(tmp_path / "model", again) < 1e-4
    assert algo.transfer._group != group


def test_a_killed_runner_comes_back_and_a_saved_run_goes_on(algo, tmp_path, monkeypatch):
    pids = algo.env_runner_group.foreach_env_runner(lambda runner: os.getpid())
    os.kill(pids[0], signal.SIGKILL)
    algo.train()
    rollouts = {key[9:]: n for key, n in algo.report.items() if key.startswith("rollouts/")}
    assert rollouts["lost"] == rollouts["asked_again"] > 0
    assert rollouts["asked"] == rollouts["finished"]
    done = ITERATIONS + 1
    assert rollouts["trained"] == done * 9 * 16  # eight cases ranked, one of them reflected on
    assert rollouts["followed_up"] == done * 16 and rollouts["waiting"] == 0
    # Found lost between two iterations: RLlib's own way back would end the learners.
    algo.env_runner_group._worker_manager.set_actor_state(1, False)
    algo.train()
    algo.save_model(tmp_path / "model")
    assert largest_gap(tmp_path / "model", sampled_by_both(algo.runners, seed=4)) < 1e-4

    monkeypatch.chdir(tmp_path)
    algo.save_to_path("checkpoint")  # actors have working folders of their own
    algo.save_model("of now")
    assert (tmp_path / "of now" / "model.safetensors").exists()
    weights = algo.learners("nll", algo.anchor_data.train)
    algo.train()
    uninterrupted = algo.report
    algo.restore_from_path("checkpoint")
    assert "anchor_data" not in vars(algo)  # stage two doesn't learn from it
    assert algo.learners("nll", algo.anchor_data.train) == weights
    assert algo.iterations_done == done + 1
    algo.train()
    for key in ("rank/reward", "reflect/reward", "loss", "kl", "grad_norm", "lr"):
        assert algo.report[key] == pytest.approx(uninterrupted[key], rel=1e-3), key


def test_a_runner_that_hangs_and_whose_restart_fails_is_made_anew(
    algo, tiny_model, monkeypatch, tmp_path
):
    runners, ledger, events = algo.runners, Ledger(), []
    monkeypatch.setattr(algo.failures, "tell", events.append)
    monkeypatch.setattr(runners, "_sample_timeout_s", 6.0)
    actor = runners._manager.actors()[1]
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    tiny_model.rename(tmp_path / "away")  # what it starts from
    call, numbers = runners._call, []

    def noted(method, arguments, timeout_s):
        if method == "sample":
            numbers.append([each["numbers"] for each in arguments.values()])
        return call(method, arguments, timeout_s)

    monkeypatch.setattr(runners, "_call", noted)
    try:
        whole = runners.sample(TASKS, rollouts=2, temperature=1.0, seed=2, ledger=ledger)
        assert whole["task"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert (ledger.asked, ledger.finished) == (8, 8)
        assert ledger.lost == ledger.asked_again > 0
        assert numbers == [[[0, 1], [2, 3]], [[0, 1]]]  # they draw as they would have before
        wait_until_gone(pid)
        state = partial(ray._private.state.actors, actor._actor_id.hex())
        wait_until(lambda: state()["State"] == "DEAD", LIMIT_S, "its restart still goes on")
    finally:
        (tmp_path / "away").rename(tiny_model)
    sampled_by_both(runners, seed=3)
    hung, failed, back = events
    assert "env runner 1 didn't finish sample within 6 s" in hung.cause
    assert failed.cause.startswith("its start failed") and str(tiny_model) in failed.cause
    assert (back.kind, back.number) == ("env_runner", 1) and back.seconds > 6

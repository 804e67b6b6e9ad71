"""Reward actors: an array in, an array out, and nobody else knows the targets."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from actors import reward_group
from actors.reward_actor import RewardActor
from actors.reward_group import RewardGroup
from starec_ray.cluster import actor_logs
from starec_ray.cluster.failures import FailureEvent, Failures
from starec_ray.errors import DataError, DeadlineError
from tests.processes import wait_until_gone
from tests.small_world import TARGET


def rankings(case_ids, order=("3", "0", "1", "2"), malformed=False) -> pa.Table:
    return pa.table(
        {
            "case_id": list(case_ids),
            "ranking": [list(order)] * len(case_ids),
            "malformed": [malformed] * len(case_ids),
        }
    )


def test_a_ranking_is_scored_and_the_choice_revealed(small_world):
    scores = RewardActor(str(small_world), "tiers").score(
        pa.concat_tables([rankings(["u0/0"]), rankings(["u1/1"], order="0312")])
    )
    assert scores["reward"].to_pylist() == [1.0, 0.5]
    assert scores["target_rank"].to_pylist() == [1, 2]
    assert scores["chosen"].to_pylist() == [TARGET, TARGET]


def test_a_malformed_ranking_earns_minus_one_and_keeps_its_rank(small_world):
    scores = RewardActor(str(small_world), "ndcg").score(rankings(["u0/0"], malformed=True))
    assert scores["reward"].to_pylist() == [-1.0]
    assert scores["target_rank"].to_pylist() == [1]


def test_a_case_without_a_target_is_named(small_world):
    with pytest.raises(DataError, match="nobody/7"):
        RewardActor(str(small_world), "tiers").score(rankings(["nobody/7"]))


def test_a_ranking_without_its_target_is_named(small_world):
    with pytest.raises(DataError, match="'u0/0' lacks its target"):
        RewardActor(str(small_world), "tiers").score(rankings(["u0/0"], order="012"))


@pytest.fixture
def group_of(ray_cluster) -> Iterator[Callable[..., RewardGroup]]:
    """Makes groups, and ends them."""
    groups = []

    def group(data: Path, num_actors: int, timeout_s: float = 60.0, tell=None) -> RewardGroup:
        failures = Failures(9, 60.0)
        failures.tell = tell or failures.tell
        groups.append(RewardGroup(str(data), "tiers", num_actors, timeout_s, failures))
        return groups[-1]

    yield group
    for started in groups:
        started.stop()


def pid_of(actor) -> int:
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60)


@pytest.mark.engine
def test_a_request_is_shared_out_and_comes_back_in_order(small_world, group_of):
    group = group_of(small_world, 3)
    cases = [f"u{i}/{i % 2}" for i in range(20)]
    assert group.score(rankings(cases))["case_id"].to_pylist() == cases
    with pytest.raises(DataError, match="nobody/7"):
        group.score(rankings(["nobody/7"]))


@pytest.mark.engine
@pytest.mark.parametrize("num_actors", [1, 2])
def test_the_share_of_a_killed_actor_is_scored_all_the_same(small_world, group_of, num_actors):
    group = group_of(small_world, num_actors)
    cases = [f"u{i}/0" for i in range(6)]
    os.kill(pid_of(group.actors[0]), signal.SIGKILL)
    assert group.score(rankings(cases))["case_id"].to_pylist() == cases


@pytest.mark.engine
def test_an_actor_that_hangs_is_ended_and_its_share_scored_all_the_same(small_world, group_of):
    events: list[FailureEvent] = []
    group = group_of(small_world, 2, tell=events.append)
    cases = [f"u{i}/0" for i in range(6)]
    assert group.score(rankings(cases))["case_id"].to_pylist() == cases  # all are up
    group._timeout_s = 5.0
    pid = pid_of(group.actors[0])
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    assert group.score(rankings(cases))["case_id"].to_pylist() == cases
    assert time.monotonic() - start > 5.0
    wait_until_gone(pid)
    while len(events) < 2:
        group._healthy(time.monotonic() + 60, "")
        time.sleep(0.2)
    lost, back = events
    assert (lost.kind, lost.number, lost.seconds) == ("reward_actor", 0, None)
    assert "reward actor 0 didn't score 3 rankings within 5 s" in lost.cause
    assert (back.kind, back.number) == ("reward_actor", 0) and back.seconds > 0


@pytest.mark.engine
def test_what_hangs_a_second_time_ends_the_run_with_the_actor_named(
    small_world, group_of, monkeypatch
):
    monkeypatch.setattr(
        actor_logs, "TIMEOUT_S", 60.0
    )  # another process reads it, on a busy machine

    class Stuck(RewardActor):
        """As an actor whose storage doesn't answer."""

        def score(self, rankings: pa.Table) -> pa.Table:
            print("waiting for the storage", flush=True)
            time.sleep(300.0)
            return super().score(rankings)

    monkeypatch.setattr(reward_group, "RewardActor", Stuck)
    group = group_of(small_world, 1)
    ray.get(group.actors[0].ping.remote(), timeout=60)
    group._timeout_s = 1.0
    # A restart takes longer than that, on a busy machine.
    healthy = group._healthy
    monkeypatch.setattr(
        group, "_healthy", lambda deadline, cause: healthy(time.monotonic() + 60.0, cause)
    )
    with pytest.raises(
        DeadlineError, match=r"(?s)reward actor 0 didn't.*the second time.*waiting for the storage"
    ):
        group.score(rankings(["u0/0"]))


@pytest.mark.engine
def test_the_share_of_an_actor_that_is_gone_for_good_goes_to_another(small_world, group_of):
    group = group_of(small_world, 2)
    cases = [f"u{i}/0" for i in range(6)]
    ray.kill(group.actors[0])
    assert group.score(rankings(cases))["case_id"].to_pylist() == cases


@pytest.mark.engine
def test_a_group_without_an_actor_left_gives_up_at_its_deadline(small_world, group_of):
    group = group_of(small_world, 1, timeout_s=3.0)
    ray.kill(group.actors[0])
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"none of 1 reward actors.*reward actor 0"):
        group.score(rankings(["u0/0"]))
    assert time.monotonic() - start < 20


@pytest.mark.engine
def test_an_actor_that_cannot_start_says_why_at_once(tmp_path, group_of):
    group = group_of(tmp_path, 1)
    with pytest.raises(DeadlineError, match="can't start"):
        group.score(rankings(["u0/0"]))

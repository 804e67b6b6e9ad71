"""Failures: told as they come, and too many within the window end the run."""

import pytest

from starec_ray.cluster import failures
from starec_ray.cluster.failures import FailureEvent, Failures, TooManyFailuresError


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [1000.0]
    monkeypatch.setattr(failures.time, "time", lambda: now[0])
    return now


def test_one_more_than_the_most_within_the_window_ends_the_run_with_the_cause(clock):
    counted = Failures(most=2, window_s=60.0)
    counted.lost("env_runner", 1, "out of memory")
    clock[0] += 30
    counted.lost("reward_actor", 0, "its node is gone")
    clock[0] += 29
    with pytest.raises(TooManyFailuresError, match=r"3 actors.*60 s.*learner 1: no answer"):
        counted.lost("learner", 1, "no answer")
    assert counted.report() == {
        "failures/env_runner": 1,
        "failures/reward_actor": 1,
        "failures/learner": 1,
    }


def test_what_failed_longer_ago_than_the_window_is_forgiven(clock):
    counted = Failures(most=1, window_s=60.0)
    for _ in range(5):
        counted.lost("env_runner", 1, "again")
        clock[0] += 61
    assert counted.report()["failures/env_runner"] == 5


def test_a_loss_and_the_way_back_are_told_with_the_seconds_between_them(clock):
    told: list[FailureEvent] = []
    counted = Failures(most=9, window_s=60.0)
    counted.tell = told.append
    counted.back("learner", 0)  # was never lost
    counted.lost("learner", 0, "killed")
    clock[0] += 4
    counted.lost("learner", 0, "killed while it came back")
    clock[0] += 8
    counted.back("learner", 0)
    counted.back("learner", 0)
    assert [(event.cause, event.seconds) for event in told] == [
        ("killed", None),
        ("killed while it came back", None),
        ("", 12.0),
    ]


def test_actors_that_are_ended_on_purpose_are_no_failures(clock):
    told: list[FailureEvent] = []
    counted = Failures(most=0, window_s=60.0)
    counted.tell = told.append
    counted.close()
    counted.lost("reward_actor", 0, "it was killed")
    assert not told and counted.report()["failures/reward_actor"] == 0

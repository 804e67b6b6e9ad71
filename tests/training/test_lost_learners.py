"""Several ranks that fail: each is named with its cause, the root of it first."""

import pytest
from ray.exceptions import RayActorError, RayTaskError

from learners.collective import LearnerLostError
from starec_ray.cluster.failures import Failures
from starec_ray.errors import WeightsLostError
from starec_ray.training import learner_calls
from starec_ray.training.learner_calls import LearnerCalls, LearnersLostError


class Worker:
    """A rank whose only method answers with its own handle."""

    def __init__(self, rank: int) -> None:
        class update:
            @staticmethod
            def remote() -> int:
                return rank

        self.update = self.memory = update


class Group:
    is_local = False

    def __init__(self, ranks: int) -> None:
        self._workers = [Worker(rank) for rank in range(ranks)]


def task_error(cause: Exception) -> RayTaskError:
    trace = f"a long traceback\n{type(cause).__name__}: {cause}"
    return RayTaskError("update", trace, cause, pid=1, ip="", actor_repr="")


@pytest.fixture
def lost(monkeypatch):
    """Calls a group whose ranks fail so, and gives the error's text and the ranks told of."""

    def call(errors: dict[int, Exception], late: list[int]) -> tuple[str, list[int]]:
        monkeypatch.setattr(learner_calls, "_wait", lambda refs, timeout_s: (errors, late))
        monkeypatch.setattr(learner_calls, "last_lines", lambda name, actor: f" [{name}'s log]")
        told: list[int] = []
        failures = Failures(most=9, window_s=60.0)
        failures.tell = lambda event: told.append(event.number)
        calls = LearnerCalls(Group(len(errors) + len(late)), 60.0, failures)
        with pytest.raises(LearnersLostError) as raised:
            calls("update")
        return str(raised.value), told

    return call


def test_every_rank_is_named_with_its_cause_and_the_root_comes_first(lost):
    text, told = lost(
        {
            0: task_error(RuntimeError("[gloo] Timed out waiting 1800000ms for recv operation")),
            1: task_error(LearnerLostError("Another learner failed first: learner 2")),
            2: task_error(MemoryError("out of memory: 9 GiB")),
        },
        [3],
    )
    lines = text.splitlines()
    assert lines[0].startswith("learner 2 failed in update") and told == [2]
    assert "9 GiB" in text
    assert "learner 0 failed in update: RuntimeError: [gloo] Timed out waiting" in text
    assert "learner 1 failed in update: LearnerLostError: Another learner failed first" in text
    assert "learner 3 of 4 didn't finish update within 30 s of that [learner 3's log]" in text
    places = [text.index(f"learner {rank} ") for rank in (2, 0, 3)]
    assert places == sorted(places)


def test_a_death_is_the_root_of_broken_connections(lost):
    broken = task_error(RuntimeError("Connection closed by peer [127.0.0.1]:4711"))
    text, told = lost({0: broken, 1: RayActorError()}, [])
    assert text.startswith("learner 1 failed in update") and told == [1]
    assert "learner 0 failed in update: RuntimeError: Connection closed by peer" in text


def test_where_none_has_failed_all_that_are_late_are_named(lost):
    text, told = lost({}, [0, 1])
    assert text.startswith("learner 0, 1 of 2 didn't finish update within 60 s.")
    assert told == [0]


def test_weights_that_are_gone_are_the_loss_of_the_learner_that_had_them(monkeypatch):
    told: list[tuple[int, str]] = []
    failures = Failures(most=9, window_s=60.0)
    failures.tell = lambda event: told.append((event.number, event.cause))

    def in_a_block(errors: dict[int, Exception]) -> str:
        monkeypatch.setattr(learner_calls, "_wait", lambda refs, timeout_s: (errors, []))
        monkeypatch.setattr(learner_calls.ray, "get", lambda refs: [{}] * len(refs))
        calls = LearnerCalls(Group(2), 60.0, failures)
        with pytest.raises(LearnersLostError) as raised, calls.answering_for_weights():
            raise WeightsLostError("the weights of version 3 are gone")
        assert calls.lost
        return str(raised.value)

    assert "killed" in in_a_block({0: RayActorError(None, "learner 0 was killed")})
    assert "version 3 are gone" in in_a_block({})  # whoever needs them can't reach it
    assert [number for number, _ in told] == [0, 0]
    with LearnerCalls(Group(1), 60.0, failures).answering_for_weights():
        pass

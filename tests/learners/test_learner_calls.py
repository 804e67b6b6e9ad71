"""A learner that dies or hangs: the group is built again and goes on from its checkpoint."""

import os
import signal

import pytest
import ray

from starec_ray.cluster.failures import FailureEvent, Failures, TooManyFailuresError
from starec_ray.training.learner_calls import LearnerCalls, LearnersLostError
from tests.learners.samples import build_group

pytestmark = pytest.mark.engine


@pytest.fixture
def calls(tiny_llama, ray_cluster):
    group = build_group(tiny_llama, num_learners=2)
    calls = LearnerCalls(group, 300.0, Failures(most=2, window_s=3600.0))
    yield calls
    calls.group.shutdown()


def send(calls: LearnerCalls, rank: int, number: signal.Signals) -> None:
    actor = calls.group._workers[rank]
    os.kill(ray._private.state.actors(actor._actor_id.hex())["Pid"], number)


def test_after_a_kill_and_after_a_hang_new_learners_go_on_from_the_checkpoint(
    calls, mixed_sequences, tmp_path
):
    def update(**options):
        return calls("update_sequences", mixed_sequences, objective="grpo", **options)[0]

    events: list[FailureEvent] = []
    calls.failures.tell = events.append
    calls("freeze_anchor")
    update()
    calls("save_checkpoint", str(tmp_path / "checkpoint"))
    expected = update()

    for number, timeout_s, told in (
        (signal.SIGKILL, 300.0, "learner 1 failed in update_sequences"),
        (signal.SIGSTOP, 1.0, r"(?s)learner .*1 of 2 didn't finish update_sequences within 1 s"),
    ):
        send(calls, 1, number)
        with pytest.raises(LearnersLostError, match=told):
            update(timeout_s=timeout_s)
        assert calls.lost
        calls.rebuild()
        calls("load_checkpoint", str(tmp_path / "checkpoint"))
        calls.back()
        assert not calls.lost
        found = update()
        for name in ("loss", "kl", "grad_norm", "lr", "rollouts_trained"):
            assert found[name] == pytest.approx(expected[name], rel=1e-6)
    assert [event.seconds is None for event in events] == [True, False] * 2

    send(calls, 0, signal.SIGKILL)
    with pytest.raises(TooManyFailuresError, match=r"3 actors failed within 3600 s.*learner"):
        update()

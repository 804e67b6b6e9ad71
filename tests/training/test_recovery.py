"""Lost learners: what is done again, and when it is no use."""

import pytest

from starec_ray.cluster.failures import TooManyFailuresError
from starec_ray.training.learner_calls import LearnersLostError
from starec_ray.training.recovery import Recovery


class Run:
    """Counts iterations; learners are lost at the calls and at the goings back that are named."""

    def __init__(self, lost_calls=(), lost_returns=(), checkpoint=0) -> None:
        self.done = self.calls = self.returns = 0
        self.lost_calls, self.lost_returns = lost_calls, lost_returns
        self.checkpoint = checkpoint
        self.recover = Recovery(lambda: self.done, self.go_back)

    def go_back(self) -> None:
        self.returns += 1
        if self.returns in self.lost_returns:
            raise LearnersLostError(f"no memory to start with, {self.returns}")
        self.done = self.checkpoint

    def step(self) -> int:
        self.calls += 1
        if self.calls in self.lost_calls:
            raise LearnersLostError(f"out of memory, {self.calls}")
        self.done += 1
        return self.done


def test_what_was_lost_is_done_again_from_the_checkpoint():
    run = Run(lost_calls=(3,))
    assert [run.recover(run.step) for _ in range(3)] == [1, 2, 1]
    assert run.returns == 1


def test_learners_that_do_not_come_up_again_end_the_run_with_the_cause():
    run = Run(lost_calls=(2,), lost_returns=(1, 2, 3))
    run.recover(run.step)
    with pytest.raises(TooManyFailuresError, match=r"3 times .*no memory to start with, 2"):
        run.recover(run.step)


def test_a_caller_that_went_back_itself_has_its_iterations_counted_from_there():
    """Another's checkpoint may be of an earlier iteration: those done since are progress still."""
    run = Run(lost_calls=(6, 8, 10), checkpoint=1)
    for _ in range(5):
        run.recover(run.step)
    run.done = 1
    run.recover.begin()
    for _ in range(3):
        run.recover(run.step)  # lost first, then again after each iteration
    assert run.returns == 3

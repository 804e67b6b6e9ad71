"""Work that goes on from a checkpoint where its learners are lost."""

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from starec_ray.cluster.failures import TooManyFailuresError
from starec_ray.training.learner_calls import LearnersLostError

MOST_REPEATED_LOSSES = 3  # where going back to a checkpoint does not help

T = TypeVar("T")


class Recovery:
    """Calls that are made again, from a checkpoint, where the learners are lost in them.

    However long a cycle of loss and recovery takes: learners that are lost again before any
    iteration was finished, or in the same iteration each time, will be lost again, and end the run.

    Args:
        iterations_done: tells how many there are.
        go_back: starts new learners, from the newest checkpoint.
    """

    def __init__(self, iterations_done: Callable[[], int], go_back: Callable[[], None]) -> None:
        self._iterations_done = iterations_done
        self._go_back = go_back
        self._in_a_row = 0  # losses without an iteration finished in between
        self._lost_after: Counter[int] = Counter()  # iteration that was finished last → losses
        self.begin()

    def begin(self) -> None:
        """The learners begin here: to be told where the caller has gone back by itself."""
        self._began_at = self._iterations_done()

    def __call__(self, work: Callable[[], T]) -> T:
        """
        Raises:
            TooManyFailuresError: `MOST_REPEATED_LOSSES` losses that going back doesn't mend; names
                the place and the cause.
        """
        lost = False
        while True:
            try:
                if lost:
                    self._go_back()
                    self.begin()
                return work()
            except LearnersLostError as error:
                self._count(error)
                self.begin()  # those that don't come up finish nothing
                lost = True

    def _count(self, cause: LearnersLostError) -> None:
        done = self._iterations_done()
        self._in_a_row = 1 if done > self._began_at else self._in_a_row + 1
        self._lost_after[done] += 1
        if max(self._in_a_row, self._lost_after[done]) >= MOST_REPEATED_LOSSES:
            raise TooManyFailuresError(
                f"the learners were lost {MOST_REPEATED_LOSSES} times in iteration {done + 1}, or "
                "without an iteration finished in between: going on doesn't help. The last time: "
                f"{cause}"
            ) from cause

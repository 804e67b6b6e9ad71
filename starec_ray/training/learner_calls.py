"""Driver side of the learner group: calls to all ranks at once, and a new group for a lost one."""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pyarrow as pa
import ray
from ray.exceptions import RayActorError, RayError
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.util.placement_group import remove_placement_group

from learners.collective import LearnerLostError
from starec_ray.cluster.actor_logs import LOGS_SHOWN, last_lines
from starec_ray.cluster.failures import Failures
from starec_ray.errors import DeadlineError, STARecError, WeightsLostError

SHORT = 300  # characters of an error that isn't the root
# How gloo and NCCL say that another rank left them alone.
COLLECTIVE = re.compile(r"timed out|timeout|connection (closed|reset)|broken pipe|abort", re.I)
GRACE_S = 30.0  # for the others to tell of themselves, once one has failed


class LearnersLostError(DeadlineError):
    """The learner group can't go on: a rank died, failed in the middle of work, or hangs."""


class LearnerCalls:
    """Calls a method of `DeepSpeedLearner` on every rank, for their work is collective.

    RLlib's own foreach would end a learner whose method raises, and hide the cause.

    Args:
        group: RLlib's learner group, local or remote.
        timeout_s: deadline of one call in seconds, where the call says nothing else.
        failures: told of every rank that is lost.
    """

    def __init__(self, group: LearnerGroup, timeout_s: float, failures: Failures) -> None:
        self.group = group
        self._timeout_s = timeout_s
        self.failures = failures
        self._lost: set[int] = set()  # ranks that ended the group

    def __call__(
        self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> list[Any]:
        """The answers, in the order of ranks.

        Raises:
            STARecError: a rank's own error that the user can mend.
            LearnersLostError: ranks failed or didn't answer in time: names each, with its error,
                the root of it first. The group can't go on then: `rebuild` it and load a
                checkpoint.
            TooManyFailuresError: that happened too often.
        """
        if self.group.is_local:
            return [getattr(self.group._learner, method)(*args, **kwargs)]
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        shared = [ray.put(a) if isinstance(a, pa.Table) else a for a in args]
        workers = self.group._workers or []
        refs = [getattr(w, method).remote(*shared, **kwargs) for w in workers]
        errors, late = _wait(refs, timeout_s)
        for failure in errors.values():
            cause = getattr(failure, "cause", None)
            if isinstance(cause, STARecError) and not isinstance(cause, LearnerLostError):
                raise cause
        if errors or late:
            self._lose_in(method, errors, late, timeout_s)
        return ray.get(refs)

    @contextlib.contextmanager
    def answering_for_weights(self) -> Iterator[None]:
        """A block in which weights that are gone are the loss of the learner that had them.

        Raises:
            LearnersLostError: in the place of WeightsLostError.
        """
        try:
            yield
        except WeightsLostError as error:
            self("memory")  # tells what the learner died of
            self._lose(0, str(error), error)  # it answers, but not those who need its weights

    @property
    def lost(self) -> bool:
        """Whether the group waits to be built again."""
        return bool(self._lost)

    def rebuild(self) -> LearnerGroup:
        """Ends what is left of the group and starts another, with the weights of the beginning.

        Raises:
            LearnersLostError: it didn't start, or not in time; nothing of it is left.
        """
        old = self.group
        end_learners(old)
        try:
            config = old.config.copy()
            self.group = config.build_learner_group(rl_module_spec=old._module_spec)
        except Exception as error:
            self._lose(0, f"the learners could not start again: {error}", error)
        return self.group

    def back(self) -> None:
        """To be told when the new group has its weights."""
        for rank in self._lost:
            self.failures.back("learner", rank)
        self._lost = set()

    def _lose_in(
        self, method: str, errors: dict[int, Exception], late: list[int], timeout_s: float
    ) -> NoReturn:
        """Tells of every rank: the root of it first and at length, the others in a line each."""
        workers = self.group._workers or []
        ranks = sorted(errors, key=lambda rank: _says_little(errors[rank]))
        said = [f"learner {rank} failed in {method}: {_short(errors[rank])}" for rank in ranks]
        if ranks:
            said[0] = f"learner {ranks[0]} failed in {method}: {errors[ranks[0]]}"
        if late:
            those = ", ".join(map(str, late))
            said.append(
                f"learner {those} of {len(workers)} didn't finish {method} within "
                + (f"{GRACE_S:g} s of that" if ranks else f"{timeout_s:g} s.")
                + "".join(last_lines(f"learner {r}", workers[r]) for r in late[:LOGS_SHOWN])
            )
        root = ranks[0] if ranks else late[0]
        self._lose(root, "\n".join(said), errors.get(root))

    def _lose(self, rank: int, message: str, cause: Exception | None = None) -> NoReturn:
        self._lost.add(rank)
        self.failures.lost("learner", rank, message)
        raise LearnersLostError(message) from cause


def end_learners(group: LearnerGroup) -> None:
    """Ends what is left of a remote group, and gives back its place."""
    place = group._backend_executor._placement_group
    for worker in group._workers or []:
        ray.kill(worker)
    with contextlib.suppress(RayError):  # of those that are gone
        group.shutdown()
    if place:  # a shutdown that was cut off leaves it taken
        remove_placement_group(place)


def _wait(refs: list[Any], timeout_s: float) -> tuple[dict[int, Exception], list[int]]:
    """Errors by rank, and the ranks that didn't answer: in time, or soon after another's error."""
    errors: dict[int, Exception] = {}
    waiting = list(refs)
    deadline = time.monotonic() + timeout_s
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        ready, waiting = ray.wait(waiting, timeout=left)
        if not ready:
            break
        try:
            ray.get(ready[0])
        except RayError as error:
            errors[refs.index(ready[0])] = error
            deadline = min(deadline, time.monotonic() + GRACE_S)
    return errors, [refs.index(ref) for ref in waiting]


def _says_little(error: Exception) -> int:
    """A rank's death, or its error, makes the others fail in what they do together, and what the
    first one failed with is quoted by the others."""
    if isinstance(error, RayActorError):
        return 0
    cause = getattr(error, "cause", None)
    if isinstance(cause, LearnerLostError):
        return 3
    return 2 if COLLECTIVE.search(str(cause)) else 1


def _short(error: Exception) -> str:
    """An error in a line: the exception itself, without the traceback that Ray puts before it."""
    cause = getattr(error, "cause", None)
    lines = (f"{type(cause).__name__}: {cause}" if cause else str(error)).splitlines()
    return next((line.strip() for line in lines if line.strip()), repr(error))[:SHORT]

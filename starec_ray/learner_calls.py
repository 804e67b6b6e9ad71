"""Driver side of the learner group: calls to all ranks at once, with a deadline and the cause."""

from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError
from ray.rllib.core.learner.learner_group import LearnerGroup

from learners.together import LearnerLostError
from starec_ray.errors import DeadlineError, STARecError


class LearnerCalls:
    """Calls a method of `DeepSpeedLearner` on every rank, for their work is collective.

    RLlib's own foreach would end a learner whose method raises, and hide the cause.

    Args:
        group: RLlib's learner group, local or remote.
        timeout_s: deadline of one call in seconds, where the call says nothing else.
    """

    def __init__(self, group: LearnerGroup, timeout_s: float) -> None:
        self._group = group
        self._timeout_s = timeout_s

    def __call__(
        self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> list[Any]:
        """The answers, in the order of ranks.

        Raises:
            STARecError: a rank's own error that the user can mend.
            DeadlineError: a rank failed or didn't answer in time: names it, with its error. The
                group can't go on then; start again from the last checkpoint.
        """
        if self._group.is_local:
            return [getattr(self._group._learner, method)(*args, **kwargs)]
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        shared = [ray.put(a) if isinstance(a, pa.Table) else a for a in args]
        workers = self._group._workers or []
        refs = [getattr(w, method).remote(*shared, **kwargs) for w in workers]
        ready, late = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        errors: dict[int, Exception] = {}
        for ref in ready:
            try:
                ray.get(ref)
            except RayError as error:
                errors[refs.index(ref)] = error
        # One rank's failure is quoted by the others: the first cause says most.
        for rank, failure in sorted(errors.items(), key=lambda e: _is_echo(e[1])):
            if isinstance(failure, RayTaskError) and isinstance(failure.cause, STARecError):
                raise failure.cause
            raise DeadlineError(f"learner {rank} failed in {method}: {failure}") from failure
        if late:
            ranks = ", ".join(str(refs.index(ref)) for ref in late)
            raise DeadlineError(
                f"learner {ranks} of {len(refs)} didn't finish {method} within {timeout_s:.0f} s."
            )
        return ray.get(refs)


def _is_echo(error: Exception) -> bool:
    return isinstance(getattr(error, "cause", None), LearnerLostError)

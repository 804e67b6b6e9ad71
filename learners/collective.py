"""How learners that work together fail together."""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from starec_ray.errors import STARecError

FAILURE = "starec/failure"  # key of the process group's store
EXIT_DELAY_S = 3.0


class LearnerLostError(STARecError):
    """Another learner of the group failed, so this one can't finish; names it and its error."""


def collective(method: Callable) -> Callable:
    """For work that all learners do together: an error in one of them ends it in all, soon.

    The one that failed raises its error, the others a LearnerLostError that quotes it where it
    can be known. All of them exit then: build the group again and load the last checkpoint.
    """

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except STARecError:  # raised by all learners alike, before they work together
            raise
        except Exception as error:
            if self.world_size == 1:
                raise
            own = f"learner {self.rank} in {method.__name__}: {error!r}"
            cause = _first_failure(own)
            # The others wait for this one until its connections close: with the process, once
            # Ray has delivered the error.
            threading.Timer(EXIT_DELAY_S, os._exit, (1,)).start()
            if cause == own:
                raise
            raise LearnerLostError(f"Another learner failed first: {cause}") from error

    return wrapped


def _first_failure(own: str) -> str:
    """The first error that any learner told of; `own` if it is this one."""
    store = dist.distributed_c10d._get_default_store()
    try:
        return store.compare_set(FAILURE, "", own).decode()
    except RuntimeError:  # learner 0, which holds the store, is gone
        return "learner 0 is gone; Ray has its error."

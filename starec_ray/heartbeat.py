"""A deadline for work that waits for something far away, in calls that have none of their own."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from starec_ray.errors import DeadlineError

T = TypeVar("T")


class Heartbeat:
    """Called by the work whenever it has got a step further."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.given_up = False

    def __call__(self) -> None:
        if self.given_up:
            raise DeadlineError("nobody waits for this any more")
        self.last = time.monotonic()


class HeartbeatDeadline:
    """Does one piece of work after the other, and waits for each as long as its heartbeat is heard.

    Work that was given up ends with its next heartbeat, or with the process. Until then nothing
    else is begun: what hangs may still write when it wakes.

    Args:
        timeout_s: longest time between two heartbeats, seconds.
        remedy: what the user can do, for the error's message.
    """

    def __init__(self, timeout_s: float, remedy: str) -> None:
        self.timeout_s = timeout_s
        self._remedy = remedy
        self._hanging: tuple[str, Future[Any]] | None = None

    def __call__(self, what: str, work: Callable[[Heartbeat], T]) -> T:
        """Does the work on a thread of its own.

        Args:
            what: the work, for the error's message.

        Raises:
            DeadlineError: no heartbeat came in time, or earlier work hangs still.
            Exception: what the work raised.
        """
        if self._hanging and not self._hanging[1].done():
            raise DeadlineError(f"{self._hanging[0]} hangs still. {self._remedy}")
        answer: Future[T] = Future()
        heartbeat = Heartbeat()

        def do() -> None:
            try:
                answer.set_result(work(heartbeat))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=do, name=what, daemon=True).start()
        while (left := heartbeat.last + self.timeout_s - time.monotonic()) > 0:
            if wait([answer], left).done:
                break
        if answer.done():
            return answer.result()
        heartbeat.given_up = True
        self._hanging = (what, answer)
        raise DeadlineError(f"{what} got no further for {self.timeout_s:g} s. {self._remedy}")

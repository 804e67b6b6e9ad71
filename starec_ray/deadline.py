"""A deadline for work that waits for something far away, in calls that have none of their own."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from starec_ray.errors import DeadlineError

T = TypeVar("T")


class Pulse:
    """Called by the work whenever it has got a step further."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.given_up = False

    def __call__(self) -> None:
        if self.given_up:
            raise DeadlineError("nobody waits for this any more")
        self.last = time.monotonic()


def while_it_moves(what: str, timeout_s: float, work: Callable[[Pulse], T]) -> T:
    """Does the work on a thread of its own, and waits as long as its pulse is heard.

    Work that was given up ends with its next pulse; the thread of one that never comes ends with
    the process.

    Args:
        what: the work, for the error's message.
        timeout_s: longest time between two pulses, seconds.

    Raises:
        DeadlineError: no pulse came in time.
        Exception: what the work raised.
    """
    answer: Future[T] = Future()
    pulse = Pulse()

    def do() -> None:
        try:
            answer.set_result(work(pulse))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=do, name=what, daemon=True).start()
    while (left := pulse.last + timeout_s - time.monotonic()) > 0:
        if wait([answer], left).done:
            return answer.result()
    pulse.given_up = True
    raise DeadlineError(f"{what} got no further for {timeout_s:g} s")

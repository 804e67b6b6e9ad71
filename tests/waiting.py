"""Waiting for what others do, with an end."""

import time
from collections.abc import Callable


def wait_until(true: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    """Fails, saying what is otherwise, if it isn't true in time."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)

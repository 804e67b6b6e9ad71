"""Processes that a test has stopped and somebody else is to end."""

import time

import psutil

TIMEOUT_S = 30.0  # Ray asks it to end first, twice


def wait_until_gone(pid: int) -> None:
    """Fails if the process is still there after a while."""
    deadline = time.monotonic() + TIMEOUT_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} is {psutil.Process(pid).status()}"
        time.sleep(0.2)

"""Processes that a test has stopped and somebody else is to end."""

import psutil

from tests.waiting import wait_until

TIMEOUT_S = 30.0  # Ray asks it to end first, twice


def wait_until_gone(pid: int) -> None:
    """Fails if the process is still there after a while."""
    wait_until(lambda: _gone(pid), TIMEOUT_S, f"process {pid} is still there")


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

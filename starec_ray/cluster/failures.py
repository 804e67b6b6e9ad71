"""Actors that failed: which, why, and how long until they were back; too many end the run."""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from starec_ray.errors import STARecError


class TooManyFailuresError(STARecError):
    """Actors fail faster than a passing fault explains: the last cause says why."""


@dataclass(frozen=True, slots=True)
class FailureEvent:
    """An actor was lost, or is back at work.

    Attributes:
        time: of the event, seconds since 1970.
        kind, number: "env_runner" 1 …, "reward_actor" 0 …, "learner" 0 …
        cause: why it was lost; "" when it is back.
        seconds: from the loss until it was back at work; None when it was lost.
    """

    time: float
    kind: str
    number: int
    cause: str = ""
    seconds: float | None = None


class Failures:
    """What fails in a run, of all kinds of actors together.

    Args:
        most: so many losses within the window are borne; one more ends the run.
        window_s: length of the window in seconds.
    """

    def __init__(self, most: int, window_s: float) -> None:
        self._most = most
        self._window_s = window_s
        self._recent: deque[float] = deque()
        self._lost_at: dict[tuple[str, int], float] = {}
        self._counts: Counter[str] = Counter()
        self._closed = False
        self.tell: Callable[[FailureEvent], None] = lambda event: None

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Reads max_failures and failure_window_s."""
        return cls(config.max_failures, config.failure_window_s)

    def lost(self, kind: str, number: int, cause: object) -> None:
        """
        Raises:
            TooManyFailuresError: this was one too many; names them and the cause.
        """
        if self._closed:
            return
        now = time.time()
        self._counts[kind] += 1
        self._lost_at.setdefault((kind, number), now)
        self.tell(FailureEvent(now, kind, number, cause=str(cause)))
        self._recent.append(now)
        while self._recent[0] < now - self._window_s:
            self._recent.popleft()
        if len(self._recent) > self._most:
            kinds = ", ".join(f"{n} of kind {kind}" for kind, n in sorted(self._counts.items()))
            raise TooManyFailuresError(
                f"{len(self._recent)} actors failed within {self._window_s:.0f} s, max_failures "
                f"is {self._most} (over the whole run: {kinds}). The last one, {kind} {number}: "
                f"{cause}"
            )

    def back(self, kind: str, number: int) -> None:
        """It is at work again; means nothing for one that wasn't lost."""
        if (since := self._lost_at.pop((kind, number), None)) is not None:
            now = time.time()
            self.tell(FailureEvent(now, kind, number, seconds=now - since))

    def close(self) -> None:
        """The actors are being ended: what is lost from now on is no failure."""
        self._closed = True

    def report(self) -> dict[str, int]:
        """Losses so far in this process, by kind: {"failures/env_runner": 2, …}."""
        kinds = ("env_runner", "reward_actor", "learner")
        return {f"failures/{kind}": self._counts[kind] for kind in kinds}

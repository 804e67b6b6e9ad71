"""Progress of long work on stderr: what happens now, how far it is, how long it still takes.

A bar on a terminal; elsewhere (CI, nohup, a notebook's log) a plain line at most every ten
seconds, so that logs stay readable.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 10.0


class Phase(Protocol):
    """One piece of long work under way."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """`n` more steps are done; `note` says what happens now."""


@contextmanager
def phase(name: str, total: int, *, console: Console | None = None) -> Iterator[Phase]:
    """Show the progress of `total` steps called `name` until the block ends.

    Phases nest: the inner one is shown below the outer one, on a terminal while it lasts.
    """
    console = console or Console(stderr=True)
    if console.is_terminal:
        nested = _shown is not None
        with _bars(console) as bars:
            bar = _Bar(bars, name, total)
            try:
                yield bar
            finally:
                bar.end(leave=not nested)
    else:
        lines = _Lines(console, name, total)
        yield lines
        lines.end()


_shown: Progress | None = None


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    """The display under way, or a new one: a terminal has room for one."""
    global _shown
    if _shown is not None:
        yield _shown
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console) as progress:
        _shown = progress
        try:
            yield progress
        finally:
            _shown = None


class _Bar:
    def __init__(self, bars: Progress, name: str, total: int) -> None:
        self._bars = bars
        self._task = bars.add_task(escape(name), total=total, note="")

    def advance(self, n: int = 1, note: str = "") -> None:
        self._bars.advance(self._task, n)
        if note:
            self._bars.update(self._task, note=escape(note))

    def end(self, *, leave: bool) -> None:
        if leave:
            self._bars.stop_task(self._task)
        else:
            self._bars.remove_task(self._task)


class _Lines:
    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console, self._name, self._total = console, name, total
        self._done = 0
        self._note = ""
        self._started = self._said = time.monotonic()
        self._say(f"0/{total}")

    def advance(self, n: int = 1, note: str = "") -> None:
        self._done += n
        self._note = note or self._note
        now = time.monotonic()
        if now - self._said >= LINE_EVERY_S and self._done < self._total:
            self._said = now
            elapsed = now - self._started
            left = elapsed / self._done * (self._total - self._done) if self._done else None
            remaining = f", {_duration(left)} left" if left is not None else ""
            self._say(f"{self._done}/{self._total} in {_duration(elapsed)}{remaining}")

    def end(self) -> None:
        self._say(f"{self._done}/{self._total} in {_duration(time.monotonic() - self._started)}")

    def _say(self, text: str) -> None:
        note = f"  ({self._note})" if self._note else ""
        self._console.print(
            f"{self._name}: {text}{note}", markup=False, highlight=False, soft_wrap=True
        )


def _duration(seconds: float) -> str:
    """1.4 s, 2 min 05 s, 3 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"

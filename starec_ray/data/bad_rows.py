"""Rows that can't be read: all collected and counted, the first few shown, one error for a file."""

from pathlib import Path

from starec_ray.errors import DataError

SHOWN = 5
_LONGEST = 80  # characters of a bad row that are shown


class BadRows:
    """The bad rows of one file. `close()` raises DataError if there are any, unless `skip`."""

    def __init__(self, file: Path, *, skip: bool) -> None:
        self.file = file
        self.skip = skip
        self.count = 0
        self._first: list[tuple[int, str]] = []

    def add(self, line: int, expected: str, found: str) -> None:
        """Note a bad row: its 1-based line number, what was expected there, what was found."""
        self.count += 1
        shown = found if len(found) <= _LONGEST else found[:_LONGEST] + "…"
        self._first.append((line, f"  line {line}: expected {expected}, found {shown!r}"))
        # By line, not by the order of the checks that found them.
        self._first = sorted(self._first)[:SHOWN]

    def close(self) -> None:
        if not self.count or self.skip:
            return
        rows = "1 bad row" if self.count == 1 else f"{self.count} bad rows"
        lines = [f"{self.file}: {rows}" + (":" if self.count <= SHOWN else f", the first {SHOWN}:")]
        lines += [text for _, text in self._first]
        lines.append("Mend the file, or leave such rows out with --skip-bad-rows.")
        raise DataError("\n".join(lines))

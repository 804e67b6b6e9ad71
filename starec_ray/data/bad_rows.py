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

    def add(self, line: int, expected: str, found: str | bytes) -> None:
        """Note a bad row: its 1-based line number, what was expected there, what was found."""
        self.count += 1
        more = "…" if len(found) > _LONGEST else ""
        shown = f"{found[:_LONGEST]!r}{more}"
        self._first.append((line, f"  line {line}: expected {expected}, found {shown}"))
        # By line, not by the order of the checks that found them.
        self._first = sorted(self._first)[:SHOWN]

    def decode(self, line: int, content: bytes) -> str | None:
        """The text of a line in UTF-8. If it is none, that is a bad row, and the answer None."""
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            around = content[max(error.start - _LONGEST // 2, 0) :]
            self.add(line, "text in UTF-8", around)
            return None

    def close(self) -> None:
        if not self.count or self.skip:
            return
        rows = "1 bad row" if self.count == 1 else f"{self.count} bad rows"
        lines = [f"{self.file}: {rows}" + (":" if self.count <= SHOWN else f", the first {SHOWN}:")]
        lines += [text for _, text in self._first]
        lines.append("Mend the file, or leave such rows out with --skip-bad-rows.")
        raise DataError("\n".join(lines))

"""Delimited text files as Arrow columns, with the line number of every row that doesn't fit."""

import codecs
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starec_ray.data.bad_rows import BadRows
from starec_ray.errors import DataError

INTEGER = r"^-?[0-9]{1,18}$"
_NUMBER = r"^-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?$"


def need_file(path: Path) -> Path:
    """`path`, or DataError if there is no such file."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: --source must be the folder that holds it.")
    return path


def read_lines(path: Path, encoding: str) -> pa.Array:
    """Every line of a text file as bytes of UTF-8, blank ones too; UTF-8 itself isn't checked.

    A file with a byte order mark, which is left out, or all of whose bytes are UTF-8 is in UTF-8,
    whatever its `encoding` is: accented letters of another encoding hardly ever are.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from None
    if content.startswith(codecs.BOM_UTF8):
        content = content.removeprefix(codecs.BOM_UTF8)
    elif encoding != "utf-8" and not _is_utf8(content):
        content = content.decode(encoding).encode()
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n")
    # Large: a file may have more than 2 GB.
    return pc.split_pattern(pa.array([content], pa.large_binary()), "\n").flatten()


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(slots=True)
class Rows:
    """The good rows of a file so far: string columns of one length, and their line numbers.

    `types` says what the columns hold and `named` what the file calls some of them, where it does.
    """

    columns: dict[str, pa.Array]
    lines: np.ndarray  # int64, 1-based
    bad: BadRows
    types: dict[str, str] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> pa.Array:
        return self.columns[name]

    def require(self, name: str, good: pa.Array, expected: str) -> None:
        """Drop the rows where `good` (bool, a null counts as false) isn't true, as bad rows."""
        good = pc.fill_null(good, False)
        wrong = np.flatnonzero(~good.to_numpy(zero_copy_only=False))
        if not len(wrong):
            return
        for row in wrong.tolist():
            self.bad.add(int(self.lines[row]), expected, self.columns[name][row].as_py())
        self.keep(good)

    def keep(self, good: pa.Array) -> None:
        """Leave the others out (`good`: bool without nulls); they are no bad rows."""
        self.columns = {key: column.filter(good) for key, column in self.columns.items()}
        self.lines = self.lines[good.to_numpy(zero_copy_only=False)]

    def require_match(self, name: str, pattern: str, expected: str) -> None:
        self.require(name, pc.match_substring_regex(self.columns[name], pattern), expected)

    def require_number(self, name: str, limit: float, expected: str) -> None:
        """A number, written with a point, and smaller in size than `limit`."""
        self.require_match(name, _NUMBER, expected)
        size = pc.abs(self.columns[name].cast(pa.float64()))
        self.require(name, pc.less(size, limit), f"{expected}, below {limit:.2g} in size")

    def require_unique(self, name: str, expected: str) -> None:
        codes = self.columns[name].dictionary_encode().indices.to_numpy()
        _, first = np.unique(codes, return_index=True)
        good = np.zeros(len(codes), dtype=bool)
        good[first] = True
        self.require(name, pa.array(good), expected)


def split_rows(
    path: Path,
    lines: pa.Array,
    separator: str,
    names: list[str],
    *,
    skip_bad_rows: bool,
    first_line: int = 1,
) -> Rows:
    """Cut lines, as bytes, into columns of text.

    Blank lines are passed over; those that are no UTF-8 or have other field counts are bad rows.
    """
    bad = BadRows(path, skip=skip_bad_rows)
    lines = _decoded(lines, first_line, bad)
    fields = pc.split_pattern(lines, separator)
    count = pc.list_value_length(fields).to_numpy(zero_copy_only=False)
    blank = pc.equal(pc.utf8_trim_whitespace(lines), "").to_numpy(zero_copy_only=False)
    good = (count == len(names)) & ~blank
    expected = (
        f"{len(names)} fields ({separator.join(names)})"
        if separator != "\t"
        else (f"{len(names)} tab-separated fields ({', '.join(names)})")
    )
    for row in np.flatnonzero(~good & ~blank).tolist():
        bad.add(first_line + row, expected, lines[row].as_py())
    flat = fields.filter(pa.array(good)).flatten()
    at = np.arange(0, len(flat), len(names))
    columns = {
        name: pc.utf8_trim_whitespace(flat.take(pa.array(at + offset))).cast(pa.string())
        for offset, name in enumerate(names)
    }
    return Rows(columns, np.flatnonzero(good) + first_line, bad)


def _decoded(lines: pa.Array, first_line: int, bad: BadRows) -> pa.Array:
    """The lines as text; those that are none go to `bad` and are blank here."""
    try:
        return lines.cast(pa.large_string())  # checks all of them at once
    except pa.ArrowInvalid:
        texts = [bad.decode(first_line + row, line) for row, line in enumerate(lines.to_pylist())]
        return pa.array(texts, pa.large_string()).fill_null("")

"""Delimited text files as Arrow columns, with the line number of every row that doesn't fit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from starec_ray.data.bad_rows import BadRows
from starec_ray.errors import DataError

INTEGER = r"^-?[0-9]{1,18}$"
NUMBER = r"^-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?$"


def need_file(path: Path) -> Path:
    """`path`, or DataError if there is no such file."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: --source must be the folder that holds it.")
    return path


def read_lines(path: Path, encoding: str) -> pa.Array:
    """Every line of a text file as a string, blank ones too; DataError if it can't be decoded."""
    try:
        table = pa.csv.read_csv(
            path,
            pa.csv.ReadOptions(column_names=["line"], encoding=encoding),
            # No text holds this control character, so each line is one column.
            pa.csv.ParseOptions(delimiter="\x01", quote_char=False, ignore_empty_lines=False),
            pa.csv.ConvertOptions(column_types={"line": pa.string()}, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return pa.array([], pa.string())
        raise DataError(f"{path} is not a text file in {encoding}: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in {encoding}: {error}") from None
    return table.column("line").combine_chunks()


@dataclass(slots=True)
class Rows:
    """The good rows of a file so far: string columns of one length, and their line numbers."""

    columns: dict[str, pa.Array]
    lines: np.ndarray  # int64, 1-based
    bad: BadRows

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
        self.columns = {key: column.filter(good) for key, column in self.columns.items()}
        self.lines = np.delete(self.lines, wrong)

    def require_match(self, name: str, pattern: str, expected: str) -> None:
        self.require(name, pc.match_substring_regex(self.columns[name], pattern), expected)

    def require_unique(self, name: str, expected: str) -> None:
        values = self.columns[name].to_numpy(zero_copy_only=False).astype(object)
        _, first = np.unique(values.astype(str), return_index=True)
        good = np.zeros(len(values), dtype=bool)
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
    """Cut lines into columns. Blank lines are passed over; other field counts are bad rows."""
    bad = BadRows(path, skip=skip_bad_rows)
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
        name: pc.utf8_trim_whitespace(flat.take(pa.array(at + offset)))
        for offset, name in enumerate(names)
    }
    return Rows(columns, np.flatnonzero(good) + first_line, bad)

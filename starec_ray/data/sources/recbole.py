"""RecBole's atomic files: tab-separated, with a header of `name:type` fields.

Two forms are read from one folder:
- one interaction a line: `*.inter` (`user_id`, `item_id`, optionally `rating`, `timestamp`);
  several such files (`.train.inter`, `.valid.inter`, `.test.inter`) are taken one after another;
  where none has a rating, a `label` (0 or 1) tells what the user thought of it;
- sequences: `item_id_list` (in time order) and `item_id`, the one that follows. Each user's longest
  sequence is taken, the test file's before the others'. If they were cut to a length, what the
  others hold is put around it, where they overlap.
Beside them `*.item` (items without a title are left out), `*.user` (optional; every field is
profile, ids and zip codes apart) and `*.random` (optional, without header: a user id, a tab, and
candidate item ids separated by spaces). https://recbole.io/docs/user_guide/data/atomic_files.html

Published data sets name these fields in many ways: the tuples below are theirs.
"""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starec_ray.data.raw import (
    RAW_CATALOG,
    RAW_INTERACTIONS,
    TIME_LIMIT,
    RawData,
    Say,
    users_table,
)
from starec_ray.data.sources.movielens import split_title
from starec_ray.data.text_tables import Rows, need_file, read_lines, split_rows
from starec_ray.errors import DataError

# What else a field may be called, the likeliest first.
_USER_IDS = ("anonymous_user_id", "visitor_id", "customer_id")
_ITEM_IDS = ("product_id", "track_id", "artist_id", "business_id")  # in an .inter file
_OWN_IDS = ("id", "_id")  # in an .item file, besides
_FLOATS = {"stars": "rating", "date": "timestamp"}  # in an .inter file, of type float
_TITLES = ("title", "movie_title", "movie_name", "book_title", "name", "item_name", "app_name")
_FILMS = ("movie_title", "movie_name")  # their titles may have a year behind them
_YEARS = ("release_year", "publication_year", "year")
_YEAR = re.compile(r"([12][0-9]{3})(\.0)?")
_TAGS = ("genre", "genres", "class", "category", "categories", "tags", "type")
_PEOPLE = (
    *("director", "directors", "artist", "artists", "author", "authors", "book_author"),
    *("developer", "brand"),
)
_FEW = 1 / 50  # of values with several words: a separator that fewer have is a part of a name
_NO_PROFILE = ("user_id", "zip_code", "zip")
_PARTS = {"train": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}


def read(folder: Path, skip_bad_rows: bool, say: Say) -> RawData:
    """The atomic files of one data set; DataError if a needed one or a needed field is missing."""

    def rows(path: Path, **needed: Sequence[str]) -> Rows:
        say(f"reading {path.name}")
        return _read(path, needed, skip_bad_rows)

    inter = [rows(path, user_id=_USER_IDS, item_id=_ITEM_IDS) for path in _inter_files(folder)]
    sequences = ["item_id_list" in part.columns for part in inter]
    if any(sequences) and not all(sequences):
        raise DataError(f"{folder}: some .inter files have an item_id_list and some have none.")
    # As the interactions call them, if the items do too.
    items = rows(_only(folder, "item"), item_id=(inter[0].named["item_id"], *_OWN_IDS, *_ITEM_IDS))
    user_paths = sorted(folder.glob("*.user"))
    users = [rows(_only(folder, "user"), user_id=_USER_IDS)] if user_paths else []
    random_paths = sorted(folder.glob("*.random"))
    given = [_read_given(_only(folder, "random"), skip_bad_rows)] if random_paths else []
    files = [*inter, items, *users, *given]
    catalog, unreadable_years = _catalog(items)
    unplaced: dict[str, list[str]] = {}
    if all(sequences):
        layout = "recbole-sequences"
        interactions, unplaced = _from_sequences(inter)
    else:
        _name_floats(inter)
        layout = "recbole-labels" if _take_labels(inter) else "recbole"
        interactions = _interactions(inter)
    return RawData(
        layout,
        catalog,
        _users(users[0]) if users else users_table({}),
        interactions,
        given_candidates=_given(given[0]) if given else {},
        unplaced=unplaced,
        inputs=tuple(part.bad.file for part in files),
        skipped_rows={part.bad.file.name: part.bad.count for part in files if part.bad.count},
        unreadable_years=unreadable_years,
    )


def _inter_files(folder: Path) -> list[Path]:
    """Plain `.inter` files first, then train, valid, test: the order that breaks time ties."""
    paths = sorted(folder.glob("*.inter"))
    if not paths:
        raise DataError(f"{folder} holds no .inter file: --source must be a RecBole data folder.")

    def place(path: Path) -> int:
        part = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
        return _PARTS.get(part, -1)

    sets = {path.name.split(".")[0] for path in paths}
    if len(sets) > 1:
        raise DataError(
            f"{folder} holds .inter files of several data sets: {', '.join(sorted(sets))}."
        )
    return sorted(paths, key=place)


def _only(folder: Path, suffix: str) -> Path:
    paths = sorted(folder.glob(f"*.{suffix}"))
    if len(paths) > 1:
        raise DataError(f"{folder} holds {len(paths)} .{suffix} files, expected one.")
    return paths[0] if paths else need_file(folder / f"{folder.name}.{suffix}")


def _read(path: Path, needed: Mapping[str, Sequence[str]], skip_bad_rows: bool) -> Rows:
    """A file's rows; its fields have the names that are used here.

    Args:
        needed: fields without which it can't be used, and what else each may be called.
    """
    lines = read_lines(path, "utf-8")
    header = lines[0].as_py().decode(errors="replace")
    fields = [field.partition(":") for field in header.split("\t")]
    names, types = [name.strip() for name, _, _ in fields], [kind.strip() for *_, kind in fields]
    named = {}
    for name, others in needed.items():
        found = [other for other in (name, *others) if other in names]
        if found:
            named[name] = found[0]
            names[names.index(found[0])] = name
    for name in needed:
        if name not in names:
            raise DataError(
                f"{path}: line 1 must name the fields as name:type with tabs between them, "
                f"{name}:token among them; found {header!r}."
            )
    rows = split_rows(path, lines[1:], "\t", names, skip_bad_rows=skip_bad_rows, first_line=2)
    rows.types, rows.named = dict(zip(names, types, strict=True)), named
    for name in needed:
        rows.require(name, pc.not_equal(rows[name], ""), f"a {name}")
    return rows


def _read_given(path: Path, skip_bad_rows: bool) -> Rows:
    names = ["user_id", "item_ids"]
    rows = split_rows(path, read_lines(path, "utf-8"), "\t", names, skip_bad_rows=skip_bad_rows)
    rows.require_unique("user_id", "a user_id that no earlier line has")
    return rows


def _first(rows: Rows, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in rows.columns), None)


def _catalog(items: Rows) -> tuple[pa.Table, int]:
    """The items that have a title, and how many of them have a year that is none."""
    title_name, year_name = _first(items, _TITLES), _first(items, _YEARS)
    if title_name is None:
        raise DataError(f"{items.bad.file} has no title field (one of {', '.join(_TITLES)}).")
    items.require_unique("item_id", "an item_id that no earlier line has")
    items.bad.close()
    items.keep(pc.not_equal(items[title_name], ""))
    titles = [html.unescape(title) for title in items[title_name].to_pylist()]
    # What RecBole's converters wrote there is whatever stood in a title's first brackets.
    given = items[year_name].to_pylist() if year_name else [""] * len(titles)
    years = [int(year[:4]) if _YEAR.fullmatch(year) else None for year in given]
    if title_name in _FILMS:
        named = [split_title(title) for title in titles]
        titles = [title for title, _ in named]
        years = [year or its_own for year, (_, its_own) in zip(years, named, strict=True)]
    unreadable = sum(year is None and text != "" for year, text in zip(years, given, strict=True))
    catalog = pa.table(
        {
            "item_id": items["item_id"],
            "title": titles,
            "year": years,
            "tags": _lists(items, _first(items, _TAGS)),
            "people": _lists(items, _first(items, _PEOPLE)),
        },
        schema=RAW_CATALOG,
    )
    return catalog, unreadable


def _lists(items: Rows, name: str | None) -> list[list[str]]:
    """A field's values as lists, cut at the first of `;` `|` `,` that the field uses.

    RecBole's own separator, the space, is taken where hardly any value has one of these: names of
    several words are common. A field of another type than `token_seq` has one value, which isn't
    cut.
    """
    if name is None:
        return [[] for _ in items.lines]
    values = [html.unescape(value) for value in items[name].to_pylist()]
    if items.types[name] not in ("token_seq", ""):
        return [[value] if value else [] for value in values]
    uses = {mark: sum(mark in value for value in values) for mark in ";|,"}
    several = sum(any(mark in value for mark in " ;|,") for value in values)
    used = (mark for mark, values_with in uses.items() if values_with > _FEW * several)
    separator = next(used, None)
    return [
        [part.strip(" '\"[]") for part in value.split(separator) if part.strip(" '\"[]")]
        for value in values
    ]


def _users(users: Rows) -> pa.Table:
    users.require_unique("user_id", "a user_id that no earlier line has")
    users.bad.close()
    names = [name for name in users.columns if name not in _NO_PROFILE]
    values = zip(*(users[name].to_pylist() for name in names), strict=True)
    profiles = [
        {name: value for name, value in zip(names, row, strict=True) if value} for row in values
    ] or [{} for _ in users.lines]
    return users_table(dict(zip(users["user_id"].to_pylist(), profiles, strict=True)))


def _name_floats(inter: list[Rows]) -> None:
    """Give the ratings and times their names here."""
    for rows in inter:
        for theirs, name in _FLOATS.items():
            if name not in rows.columns and rows.types.get(theirs) == "float":
                rows.columns[name], rows.named[name] = rows[theirs], theirs


def _take_labels(inter: list[Rows]) -> bool:
    """Make ratings of the labels, if there are no ratings; whether there are labels then."""
    labelled = [rows for rows in inter if rows.types.get("label") == "float"]
    if any("rating" in rows.columns for rows in inter):
        return False
    for rows in labelled:
        rows.columns["rating"], rows.named["rating"] = rows["label"], "label"
    return bool(labelled)


def _interactions(inter: list[Rows]) -> pa.Table:
    parts = []
    for rows in inter:
        if "rating" in rows.columns:
            expected = f"a number as {rows.named.get('rating', 'rating')}"
            rows.require_number("rating", float(np.finfo(np.float32).max), expected)
        if "timestamp" in rows.columns:
            expected = f"seconds as {rows.named.get('timestamp', 'timestamp')}"
            rows.require_number("timestamp", TIME_LIMIT, expected)
        rows.bad.close()
        count = len(rows.lines)
        parts.append(
            pa.table(
                [
                    rows["user_id"],
                    rows["item_id"],
                    rows["rating"].cast(pa.float32())
                    if "rating" in rows.columns
                    else pa.nulls(count, pa.float32()),
                    rows["timestamp"].cast(pa.float64())
                    if "timestamp" in rows.columns
                    else pa.nulls(count, pa.float64()),
                ],
                schema=RAW_INTERACTIONS,
            )
        )
    return pa.concat_tables(parts)


def _from_sequences(inter: list[Rows]) -> tuple[pa.Table, dict[str, list[str]]]:
    """The interactions, and each user's items that have no place in its sequence."""
    of_user: dict[str, list[_Row]] = {}
    for part, rows in enumerate(inter):
        rows.bad.close()
        columns = (rows[name].to_pylist() for name in ("user_id", "item_id_list", "item_id"))
        for user, before, last in zip(*columns, strict=True):
            of_user.setdefault(user, []).append(_Row(part, before, last))
    pairs: list[tuple[str, str]] = []
    unplaced: dict[str, list[str]] = {}
    for user, its_rows in of_user.items():
        sequence, others = _stitch(its_rows)
        pairs += ((user, item) for item in sequence)
        if others:
            unplaced[user] = others
    table = pa.table(
        [
            pa.array([user for user, _ in pairs], pa.string()),
            pa.array([item for _, item in pairs], pa.string()),
            pa.nulls(len(pairs), pa.float32()),
            pa.nulls(len(pairs), pa.float64()),
        ],
        schema=RAW_INTERACTIONS,
    )
    return table, unplaced


class _Row(NamedTuple):
    """A line of a sequence file; `part` is the file's place in the order of the files."""

    part: int
    before: str
    last: str

    def items(self) -> list[str]:
        return [*self.before.split(), self.last]


def _stitch(rows: list[_Row]) -> tuple[list[str], list[str]]:
    """A user's sequence, and the items of the rows that can't be joined to it.

    It is the longest row, of equal ones the last, with what the others hold before and behind it.
    """
    lengths = [len(row.items()) for row in rows]
    longest = max(range(len(rows)), key=lambda row: (lengths[row], row))
    sequence = _Sequence(rows[longest])
    # A file's rows usually are in time order, so that each row joins on to the one behind it.
    waiting = [*reversed(rows[:longest]), *rows[longest + 1 :]]
    while waiting:
        left = [row for row in waiting if not sequence.join(row)]
        if len(left) == len(waiting):
            break
        waiting = left
    others = dict.fromkeys(item for row in waiting for item in row.items())
    return sequence.items, [item for item in others if item not in sequence.known]


class _Sequence:
    """A user's sequence so far: `items` in time order, and the set of them."""

    def __init__(self, row: _Row) -> None:
        self.items = row.items()
        self.known = set(self.items)
        self._last_part = row.part

    def join(self, row: _Row) -> bool:
        """Add what a row has before or behind an overlap; false if it has something to add, and
        overlaps nowhere. No file's row is put behind those of a later one."""
        items = row.items()
        in_front = _overlap(items, self.items) if row.part <= self._last_part else 0
        if in_front == len(items):
            return True
        behind = _overlap(self.items, items) if row.part >= self._last_part else 0
        if not in_front and not behind:
            return self.known.issuperset(items)
        if in_front >= behind:
            self.items[:0] = items[: len(items) - in_front]
        else:
            self.items += items[behind:]
            self._last_part = row.part
        self.known.update(items)
        return True


def _overlap(first: list[str], second: list[str]) -> int:
    """How many items at the end of one are those at the beginning of the other, at most."""
    for count in range(min(len(first), len(second)), 0, -1):
        if first[-count] == second[0] and first[-count:] == second[:count]:
            return count
    return 0


def _given(given: Rows) -> dict[str, list[str]]:
    given.bad.close()
    lists = (ids.split() for ids in given["item_ids"].to_pylist())
    return dict(zip(given["user_id"].to_pylist(), lists, strict=True))

"""What the agents may see of a prepared data folder: items, users, cases; never the targets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starec_ray.data.store import read_manifest, read_table
from starec_ray.errors import DataError


@dataclass(frozen=True, slots=True)
class Item:
    """A catalog item. `popularity` counts its interactions, held-out targets left out."""

    item_id: str
    title: str
    year: int | None
    tags: tuple[str, ...]
    people: tuple[str, ...]
    popularity: int


@dataclass(frozen=True, slots=True)
class Case:
    """One ranking task: a user's memory up to a moment, and the candidates to be ranked.

    `history` holds (item, liked), oldest first. `candidates` are in the order in which they are
    shown. `activity` counts the user's interactions in all. `next_case_id` is the same user's
    following case, None in the last round. The target is not in here.
    """

    case_id: str
    user_id: str
    split: str
    round: int
    next_case_id: str | None
    history: tuple[tuple[Item, bool], ...]
    candidates: tuple[Item, ...]
    profile: dict[str, str]
    activity: int


class Dataset:
    """The catalog, the users and the cases of a data folder, held as Arrow columns.

    `items` maps item ids to items in catalog order, `most_popular` is the popularity of the most
    popular one; `manifest` is the folder's manifest.json.
    """

    def __init__(
        self, catalog: pa.Table, users: pa.Table, cases: pa.Table, manifest: dict[str, Any]
    ) -> None:
        """The tables have the schemas CATALOG, USERS and CASES, one chunk a column.

        Raises DataError for a repeated id, or a case that names an id that doesn't exist.
        """
        self.manifest = manifest
        self.items = _items(catalog)
        self._item_list = list(self.items.values())
        self.most_popular = max((item.popularity for item in self._item_list), default=0)
        item_ids = catalog.column("item_id").combine_chunks()
        user_ids = users.column("user_id").combine_chunks()
        _check_unique(item_ids, "catalog", "item_id")
        _check_unique(user_ids, "users", "user_id")
        _check_unique(cases.column("case_id").combine_chunks(), "cases", "case_id")

        self._case_ids: list[str] = cases.column("case_id").to_pylist()
        self._rows = {case_id: row for row, case_id in enumerate(self._case_ids)}
        self._next: list[str | None] = cases.column("next_case_id").to_pylist()
        self._user_ids: list[str] = cases.column("user_id").to_pylist()
        self._splits: list[str] = cases.column("split").to_pylist()
        self._rounds: list[int] = cases.column("round").to_pylist()
        self._activity: list[int] = cases.column("activity").to_pylist()

        user_rows = pc.index_in(cases.column("user_id"), value_set=user_ids)
        _check_known(user_rows, cases.column("user_id"), "a user id", "users")
        self._profiles: list[list[tuple[str, str]] | None] = (
            users.column("profile").take(user_rows).to_pylist()
        )
        self._history = _Lists(cases.column("history"), item_ids, "history")
        self._candidates = _Lists(cases.column("candidates"), item_ids, "candidates")
        liked = cases.column("history_liked").combine_chunks()
        self._liked: list[bool] = liked.flatten().to_pylist()
        if not np.array_equal(np.diff(_offsets(liked)), np.diff(self._history.offsets)):
            raise DataError("cases: history and history_liked differ in length.")

    @classmethod
    def load(cls, path: str | Path) -> "Dataset":
        """Read a data folder. Opens neither the targets nor the interactions.

        Raises DataError for a missing file, a wrong schema, or an id that doesn't exist.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        catalog, users, cases = (read_table(folder, name) for name in ("catalog", "users", "cases"))
        try:
            return cls(catalog, users, cases, manifest)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from None

    def case(self, case_id: str) -> Case:
        """The case of this id; DataError if there is none."""
        row = self._row(case_id)
        start, stop = self._history.offsets[row], self._history.offsets[row + 1]
        items = self._item_list
        return Case(
            case_id=case_id,
            user_id=self._user_ids[row],
            split=self._splits[row],
            round=self._rounds[row],
            next_case_id=self._next[row],
            history=tuple(
                (items[code], liked)
                for code, liked in zip(
                    self._history.codes(row), self._liked[start:stop], strict=True
                )
            ),
            candidates=tuple(items[code] for code in self._candidates.codes(row)),
            profile=dict(self._profiles[row] or ()),
            activity=self._activity[row],
        )

    def next_case_id(self, case_id: str) -> str | None:
        """`Case.next_case_id` alone, without the making of the case; DataError if there is none."""
        return self._next[self._row(case_id)]

    def _row(self, case_id: str) -> int:
        if (row := self._rows.get(case_id)) is None:
            raise DataError(f"there is no case {case_id!r} in this data folder.")
        return row

    def case_ids(self, split: str, round: int | None = None) -> list[str]:
        """The ids of a split's cases, of one round or all, in the folder's order."""
        return [
            case_id
            for case_id, its_split, its_round in zip(
                self._case_ids, self._splits, self._rounds, strict=True
            )
            if its_split == split and (round is None or its_round == round)
        ]


def load_targets(path: str | Path) -> dict[str, str]:
    """The held-out truth: case id → item id. For reward actors and metrics alone."""
    targets = read_table(Path(path), "targets")
    return dict(
        zip(
            targets.column("case_id").to_pylist(),
            targets.column("item_id").to_pylist(),
            strict=True,
        )
    )


class _Lists:
    """A list column of item ids as rows into the catalog: `codes(row)` is one list."""

    def __init__(self, column: pa.ChunkedArray, item_ids: pa.Array, name: str) -> None:
        array = column.combine_chunks()
        values = array.flatten()
        codes = pc.index_in(values, value_set=item_ids)
        _check_known(codes, values, f"an item in {name}", "catalog")
        self.offsets = _offsets(array)
        self._codes: list[int] = codes.to_pylist()

    def codes(self, row: int) -> list[int]:
        return self._codes[self.offsets[row] : self.offsets[row + 1]]


def _offsets(array: pa.ListArray) -> list[int]:
    """The bounds of each list in `array.flatten()`: length len(array) + 1."""
    return [0, *np.cumsum(pc.list_value_length(array).to_numpy(zero_copy_only=False)).tolist()]


def _items(catalog: pa.Table) -> dict[str, Item]:
    columns = [catalog.column(field.name).to_pylist() for field in catalog.schema]
    return {
        item_id: Item(item_id, title, year, tuple(tags or ()), tuple(people or ()), popularity)
        for item_id, title, year, tags, people, popularity in zip(*columns, strict=True)
    }


def _check_unique(ids: pa.Array, table: str, column: str) -> None:
    if len(ids.unique()) < len(ids):
        counts = ids.value_counts()
        first = next(entry for entry in counts if entry["counts"].as_py() > 1)["values"]
        raise DataError(f"{table}: {column} {first.as_py()!r} is there more than once.")


def _check_known(codes: pa.Array, values: pa.Array, what: str, table: str) -> None:
    if codes.null_count:
        first = values.filter(pc.is_null(codes))[0].as_py()
        raise DataError(
            f"cases: {what} is not in the {table} table: {first!r} ({codes.null_count} in all)."
        )

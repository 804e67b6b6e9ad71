"""Amazon reviews: JSON lines, plain or gzipped, with the metadata file beside them.

2014/2018: `reviewerID`, `asin`, `overall`, `unixReviewTime`; metadata `asin`, `title`, `brand`,
`categories` (2014: a list of paths) or `category` (2018: one path). The 2014 metadata are Python
literals, not JSON. 2023: `user_id`, `parent_asin`, `rating`, `timestamp` in milliseconds; metadata
`parent_asin`, `title`, `store`, `categories`.

J. Ni, J. Li and J. McAuley, EMNLP 2019; Y. Hou et al., arXiv 2403.03952.
"""

import ast
import gzip
import html
import json
import re
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from starec_ray.data.bad_rows import BadRows
from starec_ray.data.raw import (
    RAW_CATALOG,
    RAW_INTERACTIONS,
    TIME_LIMIT,
    RawData,
    Say,
    users_table,
)
from starec_ray.errors import DataError

_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_EVERY = 250_000  # rows between two status lines
# Review fields of the two layouts: user, item, rating, time, and units of time in a second.
_LAYOUTS = (
    ("user_id", "parent_asin", "rating", "timestamp", 1000),
    ("reviewerID", "asin", "overall", "unixReviewTime", 1),
)
# What stands around names in the `brand` of a 2018 record ("Visit Amazon's Paulo Coelho Page") and
# in the `store` of a 2023 one, or in their place: "Queen Format: Audio CD", "Format: DVD",
# "Jane Doe (Author, Narrator), & 2 more".
_PAGE = re.compile(r"^Visit Amazon['’]s (.+) Page$")
_FORMAT = re.compile(r"\s*\bFormat:.*$")
_ROLES = (
    *("Actor", "Adapter", "Artist", "Author", "Compiler", "Composer", "Conductor", "Contributor"),
    *("Creator", "Designer", "Director", "Editor", "Foreword", "Illustrator", "Introduction"),
    *("Narrator", "Orchestra", "Performer", "Photographer", "Producer", "Reader", "Translator"),
)
_ANY_ROLE = rf"(?:{'|'.join(_ROLES)})"
_IN_A_ROLE = re.compile(rf"\s*\({_ANY_ROLE}(?:,\s*{_ANY_ROLE})*\)[\s,;&]*(?:[0-9]+ more$)?")
_MARKUP = re.compile(r"<[^>]*>")


def read(folder: Path, skip_bad_rows: bool, say: Say) -> RawData:
    """One category: a folder with one review file and its `meta_…` file."""
    paths = [path for path in sorted(folder.iterdir()) if path.name.endswith(_ENDINGS)]
    metadata_path = _only(folder, "metadata (meta_…)", [p for p in paths if _is_meta(p)])
    reviews_path = _only(folder, "review", [p for p in paths if not _is_meta(p)])
    reviews = BadRows(reviews_path, skip=skip_bad_rows)
    metadata = BadRows(metadata_path, skip=skip_bad_rows)
    interactions = _interactions(reviews, say)
    return RawData(
        "amazon",
        _catalog(metadata, set(interactions.column("item_id").unique().to_pylist()), say),
        users_table({}),
        interactions,
        inputs=(reviews_path, metadata_path),
        skipped_rows={bad.file.name: bad.count for bad in (reviews, metadata) if bad.count},
    )


def _is_meta(path: Path) -> bool:
    return path.name.startswith("meta_")


def _only(folder: Path, what: str, paths: list[Path]) -> Path:
    if len(paths) != 1:
        found = ", ".join(path.name for path in paths) or "none"
        raise DataError(
            f"{folder} must hold one {what} file ending in {', '.join(_ENDINGS)}; found {found}."
        )
    return paths[0]


def _records(bad: BadRows, say: Say, literals: bool) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Line number, text and object of each line; the rest goes to `bad`."""
    opened: Any = gzip.open if bad.file.suffix == ".gz" else open
    number = 0
    expected = "a JSON object" + (" or a Python literal" if literals else "")
    say(f"reading {bad.file.name}")
    try:
        with opened(bad.file, "rb") as file:
            for number, content in enumerate(file, start=1):
                if number % _EVERY == 0:
                    say(f"reading {bad.file.name}: {number:,} rows")
                line = (bad.decode(number, content) or "").removeprefix("\ufeff").strip()
                if not line:
                    continue
                record = _parse(line, literals)
                if isinstance(record, dict):
                    yield number, line, record
                else:
                    bad.add(number, expected, line)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{bad.file} can't be read to its end, only to line {number}: {error}."
        ) from None


def _parse(line: str, literals: bool) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        if not literals:
            return None
    try:
        return ast.literal_eval(line)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _interactions(bad: BadRows, say: Say) -> pa.Table:
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_codes, item_codes, ratings, times = array("i"), array("i"), array("f"), array("d")
    for number, line, record in _records(bad, say, literals=False):
        fields = next((names for names in _LAYOUTS if names[0] in record), None)
        if fields is None:
            bad.add(number, "a review with reviewerID or user_id", line)
            continue
        user_name, item_name, rating_name, time_name, units = fields
        user: Any = record[user_name]
        item: Any = record.get(item_name)
        rating: Any = record.get(rating_name)
        time: Any = record.get(time_name)
        if not _is_text(user):
            bad.add(number, f"a text as {user_name}", repr(user))
        elif not _is_text(item):
            bad.add(number, f"a text as {item_name}", repr(item))
        elif not _is_number(rating):
            bad.add(number, f"a number as {rating_name}", repr(rating))
        elif not _is_number(time):
            bad.add(number, f"a number as {time_name}", repr(time))
        else:
            user_codes.append(users.setdefault(user, len(users)))
            item_codes.append(items.setdefault(item, len(items)))
            ratings.append(rating)
            times.append(time / units)
    bad.close()
    return pa.table(
        [
            pa.array(list(users), pa.string()).take(_arrow(user_codes, pa.int32())),
            pa.array(list(items), pa.string()).take(_arrow(item_codes, pa.int32())),
            _arrow(ratings, pa.float32()),
            _arrow(times, pa.float64()),
        ],
        schema=RAW_INTERACTIONS,
    )


def _is_number(value: Any) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) < TIME_LIMIT


def _is_text(value: Any) -> bool:
    """A text that isn't empty and can be stored: JSON may spell half of a surrogate pair."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _arrow(values: array, kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _catalog(bad: BadRows, wanted: set[str], say: Say) -> pa.Table:
    """The reviewed items that have a title. The first of several entries for one item counts."""
    rows: dict[str, tuple[str, list[str], list[str]]] = {}
    for number, line, record in _records(bad, say, literals=True):
        item = record.get("parent_asin") or record.get("asin")
        if not _is_text(item):
            bad.add(number, "an item with asin or parent_asin", line)
            continue
        title = _clean(record.get("title"))
        if item not in wanted or item in rows or not title:
            continue
        people = _people(record.get("store") or record.get("brand"))
        tags = _tags(record.get("categories") or record.get("category"))
        if broken := [text for text in (title, *people, *tags) if not _is_text(text)]:
            bad.add(number, "whole characters, no half of a surrogate pair", repr(broken[0]))
            continue
        rows[item] = (title, list(filter(_has_a_letter, tags)), people)
    bad.close()
    return pa.table(
        {
            "item_id": list(rows),
            "title": [title for title, _, _ in rows.values()],
            "year": [None] * len(rows),
            "tags": [tags for _, tags, _ in rows.values()],
            "people": [people for _, _, people in rows.values()],
        },
        schema=RAW_CATALOG,
    )


def _clean(text: Any) -> str:
    """One line of text without HTML entities; nothing for what isn't text or is page script."""
    if not isinstance(text, str) or text.lstrip().startswith("var aPageStart"):
        return ""
    return " ".join(html.unescape(text).split())


def _people(maker: Any) -> list[str]:
    """Who made it: one name, or several where each has its role in brackets behind it."""
    names = _IN_A_ROLE.split(_PAGE.sub(r"\1", _FORMAT.sub("", _clean(maker))))
    return list(dict.fromkeys(name for part in names if (name := part.strip(" ,"))))


def _tags(listed: Any) -> list[str]:
    """The categories without the root that all items share, each once, in their order.

    `listed` is a path, a list of paths, or one name; what is no text has no name.
    """
    listed = listed if isinstance(listed, list) else [listed]
    if not any(isinstance(entry, list) for entry in listed):
        listed = [listed]
    paths = [entry if isinstance(entry, list) else [entry] for entry in listed]
    names = [_clean(name) for path in paths for name in (path[1:] if len(path) > 1 else path)]
    return list(dict.fromkeys(name for name in names if name))


def _has_a_letter(name: str) -> bool:
    """Outside HTML tags: some categories are nothing else."""
    return any(map(str.isalpha, _MARKUP.sub("", name)))

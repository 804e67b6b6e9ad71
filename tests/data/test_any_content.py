"""Published files of any content are read, or refused by file and line: property tests."""

import gzip
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starec_ray.data.raw import RawData
from starec_ray.data.sources import amazon, recbole
from starec_ray.data.text_tables import read_lines, split_rows
from starec_ray.errors import DataError
from tests.data.test_amazon import NAMED, OLD_REVIEWS, lines
from tests.data.test_recbole import INTER, ITEMS


def read(source, contents: dict[str, str | bytes], skip: bool) -> RawData:
    """What a source's reader makes of files of these contents."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            raw = content if isinstance(content, bytes) else content.encode()
            (Path(folder) / name).write_bytes(raw)
        return source.read(Path(folder), skip, lambda message: None)


# --- lines of text ---------------------------------------------------------------------------

line_bytes = st.binary(max_size=8) | st.text(max_size=4).map(str.encode)


def is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(deadline=None)
@given(
    contents=st.lists(line_bytes.map(lambda line: b"x" + line.translate(None, b"\r\n\t"))),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_every_line_is_a_row_or_a_bad_row_of_its_number(contents, mark, end):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(mark + end.join(contents))
        rows = split_rows(path, read_lines(path, "utf-8"), "\t", ["all"], skip_bad_rows=False)
    good = [number for number, line in enumerate(contents, start=1) if is_text(line)]
    assert rows.lines.tolist() == good
    texts = [contents[number - 1].decode().strip() for number in good]
    assert [text.strip() for text in rows["all"].to_pylist()] == texts
    assert rows.bad.count == len(contents) - len(good)
    if rows.bad.count:
        first = min(set(range(1, len(contents) + 1)) - set(good))
        with pytest.raises(DataError, match=rf"\n  line {first}: expected text in UTF-8, found b"):
            rows.bad.close()


def test_one_long_id_among_many_takes_its_own_room_alone(tmp_path):
    ids = [b"%d" % number for number in range(20_000)]
    lines = pa.array([*ids, b"x" * 10**7, b"7", b"8\0"])
    rows = split_rows(tmp_path / "file", lines, "\t", ["id"], skip_bad_rows=False)
    rows.require_unique("id", "an id that no earlier line has")  # at 10 MB each: 200 GB
    with pytest.raises(DataError, match=r"1 bad row:\n  line 20002: expected an id .*, found '7'"):
        rows.bad.close()


# --- RecBole's numbers -----------------------------------------------------------------------

numbers = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.from_regex(r"-?[0-9]{1,30}(\.[0-9]{0,30})?([eE][-+]?[0-9]{1,20})?", fullmatch=True),
    st.text("0123456789.eE+-x", max_size=6),
)


@settings(deadline=None)
@given(rating=numbers, timestamp=numbers)
def test_a_number_of_any_size_is_finite_or_a_bad_row(rating, timestamp):
    inter = INTER + f"b\t2\t{rating}\t{timestamp}\n"
    raw = read(recbole, {"ml.inter": inter, "ml.item": ITEMS}, skip=True)
    assert raw.interactions.num_rows + raw.skipped_rows.get("ml.inter", 0) == 6
    for name in ("rating", "timestamp"):
        assert np.isfinite(raw.interactions[name].to_numpy()).all()
    pc.floor(raw.interactions["timestamp"]).cast(pa.int64())


# --- Amazon's records ------------------------------------------------------------------------

texts = st.text(max_size=4) | st.sampled_from(["1", "\ud83d", "Pop"])  # half a surrogate pair too
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)
fields = ["reviewerID", "user_id", "asin", "parent_asin", "overall", "rating", "timestamp",
          "unixReviewTime", "title", "brand", "store", "category", "categories"]  # fmt: skip


@settings(deadline=None)
@given(
    reviews=st.lists(st.dictionaries(st.sampled_from(fields), values, max_size=6), max_size=3),
    metadata=st.lists(st.dictionaries(st.sampled_from(fields), values, max_size=6), max_size=3),
    changed=st.dictionaries(st.sampled_from(fields), values, min_size=1, max_size=2),
)
def test_records_of_any_values_are_read_or_bad_rows(reviews, metadata, changed):
    reviews.append({"reviewerID": "a", "asin": "1", "overall": 5, "unixReviewTime": 1} | changed)
    metadata.append({"asin": "1", "title": "Album"} | changed)
    raw = read(amazon, {"CDs.json": lines(reviews), "meta_CDs.json": lines(metadata)}, skip=True)
    skipped = raw.skipped_rows.get("CDs.json", 0)
    assert raw.interactions.num_rows + skipped == len(reviews)
    raw.catalog.validate(full=True)
    raw.interactions.validate(full=True)


@settings(deadline=None)
@given(place=st.integers(0), damage=st.binary(min_size=1, max_size=8))
def test_a_damaged_gzip_file_is_read_or_named(place, damage):
    content = bytearray(gzip.compress(OLD_REVIEWS.encode() * 20))
    place %= len(content)
    content[place : place + len(damage)] = damage
    try:
        read(amazon, {"CDs.json.gz": bytes(content), "meta_CDs.json": NAMED}, skip=False)
    except DataError as error:
        assert "CDs.json.gz" in str(error) and "line " in str(error)

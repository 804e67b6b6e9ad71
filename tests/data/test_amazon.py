import gzip
import json

import pytest

from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.data.prepare import prepare
from starec_ray.errors import DataError


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


RATED = [("a", "1", 5.0, 100), ("a", "2", 2.0, 50), ("b", "3", 4.0, 1), ("b", "4", 5.0, 2)]
OLD_REVIEWS = lines(
    [
        {"reviewerID": user, "asin": item, "overall": stars, "unixReviewTime": time}
        for user, item, stars, time in RATED
    ]
)
NEW_REVIEWS = lines(
    [
        {"user_id": user, "parent_asin": item, "rating": stars, "timestamp": time * 1000 + 999}
        for user, item, stars, time in RATED
    ]
)


def check(out) -> Dataset:
    dataset = Dataset.load(out)
    assert load_targets(out) == {"a/0": "1", "b/0": "4"}
    item = dataset.items["1"]
    assert (item.title, item.tags, item.people) == ("Rock & Roll 1", ("Pop", "Live"), ("Queen",))
    assert item.year is None
    case = dataset.case("a/0")
    assert [(item.item_id, liked) for item, liked in case.history] == [("2", False)]
    return dataset


def test_2014_layout_with_python_literals_and_category_paths(files, tmp_path, small_protocol):
    metadata = "".join(
        repr(
            {
                "asin": str(n),
                "title": f"Rock &amp; Roll {n}",
                "brand": "Queen",
                "categories": [["CDs & Vinyl", "Pop"], ["CDs & Vinyl", "Pop", "Live"]],
            }
        )
        + "\n"
        for n in range(1, 6)
    )
    folder = files(
        {"reviews_CDs.json.gz": gzip.compress(OLD_REVIEWS.encode()), "meta_CDs.json": metadata}
    )
    prepare("amazon", tmp_path / "out", folder=folder, **small_protocol)
    assert "5" not in check(tmp_path / "out").items  # nobody reviewed it


def test_2018_layout(files, tmp_path, small_protocol):
    metadata = [
        {"asin": str(n), "title": f"Rock &amp; Roll {n}", "brand": " Queen\n",
         "category": ["CDs & Vinyl", "Pop", "Live"]}
        for n in (1, 2, 3, 4)
    ]  # fmt: skip
    folder = files({"CDs_5.json": OLD_REVIEWS, "meta_CDs.json": lines(metadata + metadata)})
    prepare("amazon", tmp_path / "out", folder=folder, **small_protocol)
    check(tmp_path / "out")


def test_2023_layout_counts_milliseconds(files, tmp_path, small_protocol):
    metadata = [
        {"parent_asin": str(n), "title": f"Rock & Roll {n}", "store": "Queen",
         "categories": ["CDs & Vinyl", "Pop", "Live"]}
        for n in (1, 2, 3, 4)
    ]  # fmt: skip
    folder = files(
        {
            "CDs.jsonl.gz": gzip.compress(NEW_REVIEWS.encode()),
            "meta_CDs.jsonl.gz": gzip.compress(lines(metadata).encode()),
        }
    )
    prepare("amazon", tmp_path / "out", folder=folder, **small_protocol)
    check(tmp_path / "out")


def test_reviews_of_items_without_a_title_are_dropped_and_counted(files, tmp_path, small_protocol):
    metadata = [{"asin": str(n), "title": f"Album {n}"} for n in (1, 2, 3, 4)]
    untitled = lines(
        [{"reviewerID": "a", "asin": "9", "overall": 5, "unixReviewTime": 1}] * 2
        + [{"reviewerID": "a", "asin": "8", "overall": 5, "unixReviewTime": 1}]
    )
    metadata.append({"asin": "8", "title": "var aPageStart = (new Date()).getTime();"})
    folder = files({"CDs.json": OLD_REVIEWS + untitled, "meta_CDs.json": lines(metadata)})
    report = prepare("amazon", tmp_path / "out", folder=folder, **small_protocol)
    assert report.counts["interactions_without_item"] == 3
    assert report.counts["interactions"] == 4


def test_bad_reviews_are_named_by_line(files, tmp_path):
    bad = (
        '{"reviewerID": "a", "asin": "1", "overall": "five", "unixReviewTime": 1}\n'
        '{"reviewerID": "a", "overall": 5.0, "unixReviewTime": 1}\n'
        '{"reviewerID": \n'
        '{"asin": "1"}\n'
    )
    folder = files({"CDs.json": OLD_REVIEWS + bad, "meta_CDs.json": "{}"})
    with pytest.raises(DataError) as raised:
        prepare("amazon", tmp_path / "out", folder=folder)
    message = str(raised.value)
    assert "CDs.json: 4 bad rows:" in message
    assert "line 5: expected a number as overall, found \"'five'\"" in message
    assert "line 6: expected a text as asin, found 'None'" in message
    assert "line 7: expected a JSON object, found '{\"reviewerID\":'" in message
    assert "line 8: expected a review with reviewerID or user_id" in message


def test_a_cut_off_gzip_file_is_named(files, tmp_path):
    folder = files(
        {"CDs.json.gz": gzip.compress(OLD_REVIEWS.encode())[:-20], "meta_CDs.json": "{}"}
    )
    with pytest.raises(DataError, match=r"CDs\.json\.gz can't be read to its end"):
        prepare("amazon", tmp_path / "out", folder=folder)


def test_one_review_file_and_one_metadata_file_are_needed(files, tmp_path):
    with pytest.raises(DataError, match=r"one metadata \(meta_…\) file .* found none"):
        prepare("amazon", tmp_path / "out", folder=files({"CDs.json": OLD_REVIEWS}))

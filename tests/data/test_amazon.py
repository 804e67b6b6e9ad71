import gzip
import json

import pyarrow.parquet as pq
import pytest

from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.data.prepare import prepare
from starec_ray.data.sources import amazon
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


@pytest.mark.parametrize(
    ("store", "people"),
    [
        ("Queen   Format: Audio CD", ["Queen"]),
        ("Queen  (Artist)    Format: Vinyl", ["Queen"]),
        ("Agatha Christie (Author), Hugh Fraser (Performer)", ["Agatha Christie", "Hugh Fraser"]),
        ("Jane Doe (Author, Narrator),  & 2 more   Format: Hardcover", ["Jane Doe"]),
        ("Crosby, Stills & Nash (Artist)", ["Crosby, Stills & Nash"]),
        ("Smith, Jane; Bob Roe, The Sweet (Band)", ["Smith, Jane; Bob Roe, The Sweet (Band)"]),
        ("(Author)", []),
        ("Format: DVD", []),
        ("Formation: Records", ["Formation: Records"]),
        ("", []),
    ],
)
def test_a_store_tells_who_made_it_and_not_in_which_format(store, people, files):
    records = [{"parent_asin": "1", "title": "Album", "store": store}]
    folder = files({"CDs.jsonl": NEW_REVIEWS, "meta_CDs.jsonl": lines(records)})
    catalog = amazon.read(folder, False, print).catalog
    assert catalog["people"].to_pylist() == [people]


@pytest.mark.parametrize(
    ("brand", "people"),
    [
        ("Visit Amazon's Paulo Coelho Page", ["Paulo Coelho"]),
        ("Visit Amazon&#39;s Page Page", ["Page"]),
        ("The Yellow Page", ["The Yellow Page"]),
    ],
)
def test_a_brand_is_a_name_and_not_a_link_to_its_page(brand, people, files):
    metadata = lines([{"asin": "1", "title": "Book", "brand": brand}])
    folder = files({"Books.json": OLD_REVIEWS, "meta_Books.json": metadata})
    assert amazon.read(folder, False, print).catalog["people"].to_pylist() == [people]


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


NAMED = lines([{"asin": str(n), "title": f"Album {n}"} for n in (1, 2, 3, 4)])
REVIEW = '{"reviewerID": "%s", "asin": "%s", "overall": 5, "unixReviewTime": 1}\n'


def test_of_several_entries_for_an_item_the_first_counts(files):
    again = lines([{"asin": "1", "title": "Another"}])
    folder = files({"CDs.json": OLD_REVIEWS, "meta_CDs.json": NAMED + again})
    assert amazon.read(folder, False, print).catalog["title"].to_pylist()[0] == "Album 1"


@pytest.mark.parametrize(
    ("field", "value"), [("overall", True), ("unixReviewTime", -1e300), ("unixReviewTime", 1e300)]
)
def test_a_truth_value_or_a_number_beyond_all_time_is_a_bad_row(files, field, value):
    review = {"reviewerID": "a", "asin": "1", "overall": 5.0, "unixReviewTime": 1} | {field: value}
    folder = files({"CDs.json": lines([review]), "meta_CDs.json": NAMED})
    with pytest.raises(DataError, match=f"line 1: expected a number as {field}"):
        amazon.read(folder, False, print)


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("CDs.json", "[" * 100_000 + "\n", r"expected a JSON object, found '\[\["),
        ("CDs.json", REVIEW % (r"x\ud83d", 1), r"a text as reviewerID, found .*\\ud83d"),
        ("CDs.json", REVIEW % ("x", r"\ud83d"), r"a text as asin, found .*\\ud83d"),
        ("CDs.json", b'{"reviewerID": "Ren\xe9"}\n', r"text in UTF-8, found .*Ren\\xe9"),
        ("meta_CDs.json", "[" * 100_000 + "\n", r"a JSON object or a Python literal, found '\[\["),
        ("meta_CDs.json", "{[1]: 2}\n", r"a Python literal, found '\{\[1\]: 2\}'"),
        ("meta_CDs.json", "{{'asin': '1'}}\n", r"a Python literal, found \"\{\{'asin'"),
        ("meta_CDs.json", b'{"asin": "9", "title": "Ren\xe9"}\n', r"in UTF-8, found .*Ren\\xe9"),
        ("meta_CDs.json", r'{"asin": "9", "title": "A \ud83d"}' "\n", r"whole characters.*\\ud83d"),
        (
            "meta_CDs.json",
            r'{"asin": "9", "title": "A", "category": ["Root", "\ud83d"]}' "\n",
            r"whole characters.*\\ud83d",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_named_and_can_be_skipped(
    name, row, expected, files, tmp_path, small_protocol
):
    contents = {"CDs.json": OLD_REVIEWS + REVIEW % ("c", 9), "meta_CDs.json": NAMED}
    contents[name] = contents[name].encode() + (row if isinstance(row, bytes) else row.encode())
    folder = files(contents)
    with pytest.raises(DataError, match=rf"(?s)/{name}: 1 bad row:.*line [56]: .*{expected}"):
        prepare("amazon", tmp_path / "out", folder=folder, **small_protocol)
    report = prepare(
        "amazon", tmp_path / "out", folder=folder, skip_bad_rows=True, **small_protocol
    )
    assert report.counts["skipped_bad_rows"] == {name: 1}


def test_reviews_within_a_second_keep_their_order(files, tmp_path, small_protocol):
    times = {"1": 20_120, "2": 20_923, "3": 1_000, "4": 9_000}
    users = {"2": "a", "1": "a", "3": "b", "4": "b"}  # the later one of a comes first in the file
    reviews = lines(
        [
            {"user_id": user, "parent_asin": item, "rating": 5.0, "timestamp": times[item]}
            for item, user in users.items()
        ]
    )
    folder = files({"CDs.jsonl": reviews, "meta_CDs.jsonl": NAMED})
    prepare("amazon", tmp_path / "out", folder=folder, **small_protocol)
    assert load_targets(tmp_path / "out") == {"a/0": "2", "b/0": "4"}
    written = pq.read_table(tmp_path / "out" / "interactions.parquet")
    assert written.column("timestamp").to_pylist() == [20, 20, 1, 9]


def test_a_byte_order_mark_is_passed_over(files):
    folder = files({"CDs.json": "\ufeff" + OLD_REVIEWS, "meta_CDs.json": "\ufeff" + NAMED})
    raw = amazon.read(folder, False, lambda message: None)
    assert raw.interactions.num_rows == raw.catalog.num_rows == 4


@pytest.mark.parametrize(
    ("category", "tags"),
    [
        ("Pop &amp; Rock", ["Pop & Rock"]),
        (["Root", "Pop", "Live"], ["Pop", "Live"]),
        ([["Root", "Pop"], ["Root", "Live"]], ["Pop", "Live"]),
        ([["Root", "Pop"], None, "Live"], ["Pop", "Live"]),
        (["Root"], ["Root"]),
        (["Root", "Pop", "</span></span></span>", "<b>音楽</b>"], ["Pop", "<b>音楽</b>"]),
        ({"Root": "Pop"}, []),
        (5, []),
        (None, []),
    ],
)
def test_categories_of_any_shape_are_names(category, tags, files):
    metadata = lines([{"asin": "1", "title": "Album", "category": category}])
    folder = files({"CDs.json": OLD_REVIEWS, "meta_CDs.json": metadata})
    assert amazon.read(folder, False, lambda message: None).catalog["tags"].to_pylist() == [tags]


def test_a_cut_off_gzip_file_is_named(files, tmp_path):
    folder = files(
        {"CDs.json.gz": gzip.compress(OLD_REVIEWS.encode())[:-20], "meta_CDs.json": "{}"}
    )
    with pytest.raises(DataError, match=r"CDs\.json\.gz can't be read to its end"):
        prepare("amazon", tmp_path / "out", folder=folder)


def test_one_review_file_and_one_metadata_file_are_needed(files, tmp_path):
    with pytest.raises(DataError, match=r"one metadata \(meta_…\) file .* found none"):
        prepare("amazon", tmp_path / "out", folder=files({"CDs.json": OLD_REVIEWS}))

import re

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from starec_ray.cli.data import app
from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.data.prepare import prepare
from starec_ray.data.sources import recbole
from starec_ray.errors import DataError

ITEMS = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Comedy\n2\tMatrix, The\t1999\tAction\n"
    "3\tHeat\t\tAction Crime\n4\tFargo\t1996\tCrime\n"
)
INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "a\t1\t4.5\t20.0\na\t2\t2\t10\na\t3\t4\t30.5\nb\t4\t5\t1\nb\t1\t4\t2\n"
)
SEQUENCE_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"


def test_atomic_files_with_ratings_and_profiles(files, tmp_path, small_protocol):
    users = "user_id:token\tage:token\tzip_code:token\na\t24\t85711\nb\t\t1\n"
    folder = files({"ml.inter": INTER, "ml.item": ITEMS, "ml.user": users})
    prepare("recbole", tmp_path / "out", folder=folder, **small_protocol | {"negatives": 1})
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.manifest["layout"] == "recbole"
    assert dataset.items["2"].title == "The Matrix" and dataset.items["2"].year == 1999
    assert dataset.items["3"].year is None and dataset.items["3"].tags == ("Action", "Crime")
    case = dataset.case("a/0")
    assert [(item.item_id, liked) for item, liked in case.history] == [("2", False), ("1", True)]
    assert case.profile == {"age": "24"} and dataset.case("b/0").profile == {}


def test_interactions_within_a_second_keep_their_order(files, tmp_path, small_protocol):
    # The later one of a comes first in the file.
    inter = "user_id:token\titem_id:token\ttimestamp:float\n" + (
        "a\t2\t20.9\na\t1\t20.1\nb\t3\t1\nb\t4\t2e0\n"
    )
    folder = files({"ml.inter": inter, "ml.item": ITEMS})
    prepare("recbole", tmp_path / "out", folder=folder, **small_protocol)
    assert load_targets(tmp_path / "out") == {"a/0": "2", "b/0": "4"}
    written = pq.read_table(tmp_path / "out" / "interactions.parquet")
    assert written.column("timestamp").to_pylist() == [20, 20, 1, 2]


@pytest.mark.parametrize(
    ("kind", "people", "tags"),
    [
        ("token", ("Johnson & Johnson",), ("Baby Care",)),
        ("token_seq", ("Johnson", "&", "Johnson"), ("Baby", "Care")),
        ("", ("Johnson", "&", "Johnson"), ("Baby", "Care")),
    ],
)
def test_only_a_sequence_of_tokens_is_cut(kind, people, tags, files):
    items = f"item_id:token\ttitle:token\tbrand:{kind}\tcategories:{kind}\n" + (
        "1\tBaby Soap\tJohnson & Johnson\tBaby Care\n2\tSoap\t\t\n"
    )
    read = recbole.read(files({"shop.inter": INTER, "shop.item": items}), False, lambda text: None)
    assert read.catalog["title"].to_pylist() == ["Baby Soap", "Soap"]
    assert read.catalog["people"].to_pylist() == [list(people), []]
    assert read.catalog["tags"].to_pylist() == [list(tags), []]


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (["Film-Noir Action"] * 98 + ["War, Peace"], [("Film-Noir", "Action")] * 98),
        (["'Baby Care', 'Toys'"] * 98 + ["'A; B', 'Toys'"], [("Baby Care", "Toys")] * 98),
        (["Classic Rock"] * 90 + ["Pop;Rock"] * 9, [("Classic Rock",)] * 90),
        (["King, Stephen"] * 7 + ["King, Stephen; Straub, Peter"] * 3, [("King, Stephen",)] * 7),
    ],
)
def test_a_field_is_cut_at_what_its_values_use_and_not_at_what_one_of_them_has(values, tags, files):
    header = "item_id:token\ttitle:token\tgenre:token_seq\n"
    lines = (f"{number}\tTitle {number}\t{value}\n" for number, value in enumerate(values))
    folder = files({"x.inter": INTER, "x.item": header + "".join(lines)})
    read = recbole.read(folder, False, lambda text: None)
    found = [tuple(each) for each in read.catalog["tags"].to_pylist()]
    assert found[: len(tags)] == tags


def test_what_stands_for_a_year_and_is_none_is_left_out_and_told(files, tmp_path, small_protocol):
    # As RecBole's converters wrote "unknown" and "Land Before Time III: … (1995) (V)".
    odd = "5\tunknown\tunkonwn\tunkown\n6\tLand Before Time III\tV\tAnimation\n"
    odd += "7\tSeven (1995)\tSe7en\tCrime\n8\tJumanji\t1995.0\tAdventure\n"
    inter = INTER + "a\t5\t4\t40\nb\t6\t4\t41\na\t7\t4\t42\nb\t8\t4\t43\n"
    folder = files({"ml.inter": inter, "ml.item": ITEMS + odd})
    out = tmp_path / "out"
    report = prepare("recbole", out, folder=folder, **small_protocol)
    assert report.counts["unreadable_years"] == 2
    shown = CliRunner().invoke(app, ["show", str(out)], env={"COLUMNS": "120"}).output
    assert re.search("items whose year is none, left without one +│ 2 ", shown)
    items = Dataset.load(out).items
    assert [items[number].year for number in "5678"] == [None, None, 1995, 1995]


@pytest.mark.parametrize(
    ("inter", "item", "year", "tags", "people"),
    [
        (
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            "item_id:token\tmovie_name:token_seq\trelease_year:token\ttype:token_seq",
            *(1999, ("Ann", "Bo"), ()),
        ),
        (
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            "item_id:token\tbook_title:token_seq\tpublication_year:float\tbook_author:token_seq",
            *(1999, (), ("Ann", "Bo")),
        ),
        (
            "user_id:token\tproduct_id:token\tplay_hours:float\ttimestamp:float",
            "id:token\tapp_name:token\trelease_year:token\ttags:token_seq",
            *(1999, ("Ann", "Bo"), ()),
        ),
        (
            "anonymous_user_id:token\tartist_id:token\trating:float\ttimestamp:float",
            "artist_id:token\tname:token\turl:token\tpicture:token",
            *(None, (), ()),
        ),
        (
            "user_id:token\tbusiness_id:token\tstars:float\tdate:float",
            "business_id:token\titem_name:token_seq\tcity:token\tcategories:token_seq",
            *(None, ("Ann", "Bo"), ()),
        ),
    ],
    ids=["ml-20m", "book-crossing", "steam", "yahoo-music", "yelp"],
)
def test_fields_are_known_by_the_names_of_published_data_sets(
    inter, item, year, tags, people, files
):
    rows = "u\t1\t4.5\t20\nu\t2\t3\t30\n"
    items = "1\tFirst\t1999\tAnn Bo\n2\tSecond\t\t\n"
    folder = files({"x.inter": f"{inter}\n{rows}", "x.item": f"{item}\n{items}"})
    read = recbole.read(folder, False, lambda text: None)
    [first, _] = read.catalog.to_pylist()
    assert first == {"item_id": "1", "title": "First", "year": year} | {
        "tags": list(tags),
        "people": list(people),
    }
    assert read.interactions["item_id"].to_pylist() == ["1", "2"]
    assert read.interactions["timestamp"].to_pylist() == [20, 30]


def test_items_are_known_by_the_name_that_the_interactions_have_for_them(files):
    inter = "user_id:token\tartist_id:token\nu\tBo\nu\tAnn\n"
    items = "track_id:token\tartist_id:token\tid:token\tname:token\n1\tAnn\t7\tAnn\n2\tBo\t8\tBo\n"
    read = recbole.read(files({"x.inter": inter, "x.item": items}), False, lambda text: None)
    assert read.catalog["item_id"].to_pylist() == ["Ann", "Bo"]
    row_numbers = "id:token\tuser_id:token\tsong_id:token\n1\tu\tBo\n"
    folder = files({"x.inter": row_numbers, "x.item": items})
    with pytest.raises(DataError, match="line 1 must name the fields"):
        recbole.read(folder, False, lambda text: None)


def test_a_field_that_holds_no_numbers_is_no_rating_and_no_time(files):
    inter = "user_id:token\titem_id:token\tdate:token\tstars:token\n"
    inter += "a\t1\t2018-01-02\t****\na\t2\t2018-01-01\t*\n"
    users = "user_id:token\tid:token\tdate:float\na\t5\t2001\n"
    folder = files({"ml.inter": inter, "ml.item": ITEMS, "ml.user": users})
    read = recbole.read(folder, False, lambda text: None)
    assert read.interactions["timestamp"].null_count == read.interactions["rating"].null_count == 2
    assert read.users["profile"].to_pylist() == [[("id", "5"), ("date", "2001")]]


def test_several_inter_files_are_one_log(files, tmp_path, small_protocol):
    header, *rows = INTER.splitlines(keepends=True)
    folder = files(
        {
            "ml.test.inter": header + rows[4],
            "ml.train.inter": header + "".join(rows[:3]),
            "ml.valid.inter": header + rows[3],
            "ml.item": ITEMS,
        }
    )
    prepare("recbole", tmp_path / "out", folder=folder, **small_protocol | {"negatives": 1})
    assert load_targets(tmp_path / "out") == {"a/0": "3", "b/0": "1"}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "ml.inter",
            INTER + "b\t2\t3\t1e30\n",
            "line 7: expected seconds as timestamp, below 4.6e+18 in size, found '1e30'",
        ),
        (
            "ml.inter",
            INTER + "b\t2\t1e999\t3\n",
            "line 7: expected a number as rating, below 3.4e+38 in size, found '1e999'",
        ),
        (
            "ml.item",
            (ITEMS + "5\tAmélie\t\t\n").encode("latin-1"),
            r"line 6: expected text in UTF-8, found b'5\tAm\xe9lie\t\t'",
        ),
        (
            "ml.inter",
            INTER + "a\t1\tgood\t3\n",
            "line 7: expected a number as rating, found 'good'",
        ),
        (
            "ml.inter",
            INTER.replace("rating", "label") + "a\t1\tyes\t3\n",
            "line 7: expected a number as label, found 'yes'",
        ),
        ("ml.inter", INTER + "a\t1\n", "line 7: expected 4 tab-separated fields"),
        ("ml.inter", "user\titem\n1\t2\n", "line 1 must name the fields"),
        ("ml.item", "item_id:token\n1\n", "has no title field"),
        ("ml.item", ITEMS + ITEMS.splitlines()[1] + "\n", "line 6: expected an item_id that no"),
    ],
)
def test_what_is_wrong_is_named(files, tmp_path, name, text, expected):
    folder = files({"ml.inter": INTER, "ml.item": ITEMS} | {name: text})
    with pytest.raises(DataError) as raised:
        prepare("recbole", tmp_path / "out", folder=folder)
    assert expected in str(raised.value)


def test_a_row_in_another_encoding_can_be_skipped(files, tmp_path, small_protocol):
    items = (ITEMS + "5\tAmélie\t\t\n").encode("latin-1")
    folder = files({"ml.inter": INTER, "ml.item": items})
    small_protocol["negatives"] = 1
    out = tmp_path / "out"
    report = prepare("recbole", out, folder=folder, skip_bad_rows=True, **small_protocol)
    assert report.counts["skipped_bad_rows"] == {"ml.item": 1}


def test_items_without_a_title_are_left_out_with_their_interactions(
    files, tmp_path, small_protocol
):
    folder = files({"ml.inter": INTER + "b\t9\t5\t3\n", "ml.item": ITEMS + "9\t\t\t\n"})
    report = prepare(
        "recbole", tmp_path / "out", folder=folder, **small_protocol | {"negatives": 1}
    )
    assert report.counts["interactions_without_item"] == 1
    assert report.counts["skipped_bad_rows"] == {}


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev"])
def test_parts_without_times_are_in_the_order_of_a_split(name, files):
    header = "user_id:token\titem_id:token\n"
    parts = {"train": "1\n", name: "2\n", "test": "3\n"}
    contents = {f"ml.{part}.inter": f"{header}a\t{item}" for part, item in parts.items()}
    read = recbole.read(files(contents | {"ml.item": ITEMS}), False, print)
    assert read.interactions["item_id"].to_pylist() == ["1", "2", "3"]


def test_what_a_title_does_to_a_terminal_is_left_out(files, tmp_path, small_protocol):
    items = ITEMS.replace("Toy Story", "Toy \x1b]0;owned\x07\x1b[31mStory")
    items = items.replace("Animation", "Anima\x1b[2Jtion")
    folder, out = files({"ml.inter": INTER, "ml.item": items}), tmp_path / "out"
    prepare("recbole", out, folder=folder, **small_protocol | {"negatives": 1})
    shown = CliRunner().invoke(app, ["show", str(out)], env={"COLUMNS": "200"}).output
    assert "Toy" in shown and "Story" in shown and "\x1b" not in shown and "\x07" not in shown


def show(out) -> str:
    return CliRunner().invoke(app, ["show", str(out)], env={"COLUMNS": "160"}).output


def test_labels_tell_what_was_liked_where_there_are_no_ratings(files, tmp_path, small_protocol):
    inter = "user_id:token\titem_id:token\tlabel:float\ttimestamp:float\n"
    inter += "a\t1\t1.0\t20\na\t2\t0.0\t10\na\t3\t1\t30\nb\t4\t1\t1\nb\t1\t1\t2\nb\t2\t0\t3\n"
    folder, out = files({"ml.inter": inter, "ml.item": ITEMS}), tmp_path / "out"
    prepare("recbole", out, folder=folder, **small_protocol | {"negatives": 1})
    dataset = Dataset.load(out)
    assert dataset.manifest["layout"] == "recbole-labels"
    assert dataset.manifest["parameters"]["positive_above"] == 0
    assert load_targets(out) == {"a/0": "3", "b/0": "1"}
    history = dataset.case("a/0").history
    assert [(item.item_id, liked) for item, liked in history] == [("2", False), ("1", True)]
    assert "no ratings" not in show(out)


def test_a_rating_counts_more_than_a_label(files):
    inter = "user_id:token\titem_id:token\tlabel:float\trating:float\na\t1\t0\t4.5\n"
    read = recbole.read(files({"ml.inter": inter, "ml.item": ITEMS}), False, lambda text: None)
    assert (read.layout, read.interactions["rating"].to_pylist()) == ("recbole", [4.5])


def test_that_there_are_no_ratings_is_said(files, tmp_path, small_protocol):
    header = "user_id:token\titem_id:token\tlabel:token\n"
    inter = header + "a\t1\t0\na\t2\t0\nb\t3\t0\nb\t4\t0\n"
    folder, out = files({"ml.inter": inter, "ml.item": ITEMS}), tmp_path / "out"
    report = prepare("recbole", out, folder=folder, **small_protocol)
    assert report.counts["interactions_without_rating"] == 4
    assert re.search("no ratings +│ every interaction counts as positive ", show(out))
    rated = files({"ml.inter": INTER})
    report = prepare("recbole", out, folder=rated, force=True, **small_protocol | {"negatives": 1})
    assert "interactions_without_rating" not in report.counts
    assert "no ratings" not in show(out)


def test_a_folder_without_inter_files_is_refused(files, tmp_path):
    with pytest.raises(DataError, match=r"holds no \.inter file"):
        prepare("recbole", tmp_path / "out", folder=files({"ml.item": ITEMS}))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"other.inter": INTER}, "several data sets: ml, other"),
        ({"other.item": ITEMS}, "holds 2 .item files, expected one"),
        (
            {"ml.test.inter": SEQUENCE_HEADER + "a\t1\t2\n"},
            "some .inter files have an item_id_list",
        ),
    ],
)
def test_files_that_make_no_one_data_set_are_refused(files, more, expected):
    with pytest.raises(DataError) as raised:
        recbole.read(files({"ml.inter": INTER, "ml.item": ITEMS} | more), False, print)
    assert expected in str(raised.value)

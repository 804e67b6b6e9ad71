"""Sequence files of RecBole's: put together again, with the candidates published for them."""

import random
import re
from typing import Any

import pytest
from typer.testing import CliRunner

from starec_ray.cli.data import app
from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.data.prepare import prepare
from starec_ray.data.sources import recbole
from tests.data.test_recbole import ITEMS, SEQUENCE_HEADER, show


def sequence_files(users: int = 2) -> dict[str, str]:
    """Each user has items 1 … 4 of ten; given candidates are 10 down to 1."""
    names = [f"u{number}" for number in range(users)]
    given = " ".join(str(number) for number in range(10, 0, -1))
    return {
        "cds.train.inter": SEQUENCE_HEADER + "".join(f"{u}\t1\t2\n" for u in names),
        "cds.valid.inter": SEQUENCE_HEADER + "".join(f"{u}\t1 2\t3\n" for u in names),
        "cds.test.inter": SEQUENCE_HEADER
        + "".join(f"{u}\t1 2 3\t4\n" for u in names)
        + "z\t5 6 7 8 9\t10\n",
        "cds.item": "item_id:token\ttitle:token_seq\tcategory:token_seq\n"
        + "".join(f"{n}\tAlbum &amp; {n}\tPop; Classic Rock\n" for n in range(1, 11)),
        "cds.random": "".join(f"{u}\t{given}\n" for u in names),
    }


def test_sequences_give_the_longest_history_and_use_the_given_candidates(files, tmp_path):
    protocol: dict[str, Any] = {
        "train_users": 1,
        "validation_users": 0,
        "test_users": 1,
        "negatives": 3,
    }
    folder = files(sequence_files())
    folder.joinpath("cds.test.inter").write_text(
        SEQUENCE_HEADER + "u0\t1 2 3\t4\nu1\t1 2 3\t4\nz\t5 6 7 8 9\t10\n"
    )
    prepare("recbole", tmp_path / "out", folder=folder, **protocol | {"train_users": 2})
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.manifest["layout"] == "recbole-sequences"
    assert dataset.items["1"].title == "Album & 1"
    assert dataset.items["1"].tags == ("Pop", "Classic Rock")
    last = dataset.case("u0/1")
    assert [item.item_id for item, _ in last.history] == ["1", "2", "3"]
    assert all(liked for _, liked in last.history)
    # The evaluated case takes the first of the list, the earlier one those that follow.
    assert {item.item_id for item in last.candidates} == {"4", "10", "9", "8"}
    assert {item.item_id for item in dataset.case("u0/0").candidates} == {"3", "7", "6", "5"}


def test_too_few_given_candidates_are_filled_up(files, tmp_path):
    protocol: dict[str, Any] = {
        "train_users": 2,
        "validation_users": 0,
        "test_users": 1,
        "negatives": 4,
    }
    folder = files(sequence_files())
    prepare("recbole", tmp_path / "out", folder=folder, **protocol)
    candidates = {item.item_id for item in Dataset.load(tmp_path / "out").case("u0/0").candidates}
    assert candidates >= {"3", "6", "5"} and len(candidates) == 5
    assert not candidates & {"1", "2", "4"}


def test_given_candidates_that_are_no_items_are_counted(files, tmp_path):
    contents = sequence_files()
    contents["cds.random"] = "u0\t10 98 9 99\nu1\t97 8\n"
    protocol = {"train_users": 2, "validation_users": 0, "test_users": 1, "negatives": 3}
    out = tmp_path / "out"
    report = prepare("recbole", out, folder=files(contents), **protocol)
    assert report.counts["given_candidates_without_item"] == 3
    shown = CliRunner().invoke(app, ["show", str(out)], env={"COLUMNS": "120"}).output
    assert re.search("published candidates dropped, not among the items │ 3 ", shown)


def test_every_published_list_and_candidate_is_accounted_for(files, tmp_path):
    contents = sequence_files(3)
    contents["cds.item"] += "11\tALBUM &amp; 10\t\n"
    contents["cds.test.inter"] += "z\t10\t11\n"
    given = {"u0": "10 98 1 11 9 9 8 7", "u1": "5", "u2": "5", "nobody": "10 9"}
    contents["cds.random"] = "".join(f"{user}\t{ids}\n" for user, ids in given.items())
    protocol = {"train_users": 0, "validation_users": 0, "test_users": 4, "negatives": 2}
    out, folder = tmp_path / "out", files(contents)
    counts = prepare("recbole", out, folder=folder, **protocol).counts
    assert {name: count for name, count in counts.items() if "given" in name} == {
        "given_lists_without_user": 1,
        "given_lists_without_case": 0,
        "given_candidates_without_item": 1,  # 98
        "given_candidates_touched": 1,  # 1
        "given_candidates_repeated": 2,  # 11 is named like 10, and 9 is there twice
        "given_candidates_not_needed": 0,
        "negatives_given": 6,  # four of u0, one of u1, one of u2
    }
    assert counts["negatives_drawn"] == 4 * 2 * 2 - 6
    assert "published candidate lists unused, of users without interactions │ 1 " in show(out)
    assert "│ 6 from the published lists, 10 drawn " in show(out)

    protocol["test_users"] = 1
    counts = prepare("recbole", out, folder=folder, force=True, **protocol).counts
    users = {Dataset.load(out).case(case_id).user_id for case_id in load_targets(out)}
    assert counts["given_lists_without_case"] == len({"u0", "u1", "u2"} - users) > 1


def windowed(sequence: list[int], window: int) -> list[str]:
    """A line for each item but the first, with at most so many before it."""
    ends = range(1, len(sequence))
    lists = [" ".join(map(str, sequence[max(end - window, 0) : end])) for end in ends]
    return [f"u\t{before}\t{sequence[end]}\n" for before, end in zip(lists, ends, strict=True)]


def read_sequences(files, **parts: list[str]):
    """What is read of sequence files with these lines; items 1 … 40."""
    items = "item_id:token\ttitle:token\n" + "".join(f"{n}\tAlbum {n}\n" for n in range(1, 41))
    contents = {f"x.{part}.inter": SEQUENCE_HEADER + "".join(rows) for part, rows in parts.items()}
    read = recbole.read(files({"x.item": items} | contents), False, lambda text: None)
    return [int(item) for item in read.interactions["item_id"].to_pylist()], read.unplaced


@pytest.mark.parametrize("order", ["as published", "newest first", "shuffled"])
@pytest.mark.parametrize("window", [1, 3, 10, 30])
def test_sequences_that_were_cut_to_a_length_are_put_together_again(window, order, files):
    sequence = random.Random(window).sample(range(1, 41), 25)
    *train, valid, test = windowed(sequence, window)
    if order == "newest first":
        train.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(train)
    read = read_sequences(files, train=train, valid=[valid], test=[test])
    assert read == (sequence, {})


def test_windows_with_steps_between_them_are_put_together(files):
    rows = ["u\t1 2 3 4\t5\n", "u\t4 5 6 7\t8\n", "u\t8 9 10 11\t12\n"]
    assert read_sequences(files, train=rows) == (list(range(1, 13)), {})


def test_the_test_files_row_has_the_last_word(files):
    # 8 could as well be followed by what the training file has behind it.
    train = ["u\t8 9 10\t11\n", "u\t1 2 3\t4\n", "u\t2 3 4\t5\n"]
    sequence, unplaced = read_sequences(files, train=train, test=["u\t4 5 6\t8\n"])
    assert sequence == [1, 2, 3, 4, 5, 6, 8]
    assert unplaced == {"u": ["9", "10", "11"]}
    # A shorter one too.
    assert read_sequences(files, train=train[1:], test=["u\t5\t8\n"]) == ([1, 2, 3, 4, 5, 8], {})


def test_no_row_stands_in_front_of_or_behind_those_of_a_later_file(files):
    read = read_sequences(files, train=["u\t1 2 3\t4\n"], test=["u\t7 8\t1\n"])
    assert read == ([1, 2, 3, 4], {"u": ["7", "8"]})
    train = ["u\t8 9 10\t11\n", "u\t1 2 3\t4\n", "u\t2 3 4\t5\n"]
    read = read_sequences(files, train=train, test=["u\t5\t8\n"])
    assert read == ([1, 2, 3, 4, 5, 8], {"u": ["9", "10", "11"]})


def test_of_sequences_of_one_length_the_test_file_s_is_taken(files):
    contents = {
        "x.train.inter": SEQUENCE_HEADER + "u\t1 2\t3\n",
        "x.test.inter": SEQUENCE_HEADER + "u\t1 2\t4\n",
        "x.item": ITEMS,
    }
    read = recbole.read(files(contents), False, lambda text: None)
    assert read.interactions["item_id"].to_pylist() == ["1", "2", "4"]


def test_items_without_a_place_in_the_sequence_are_no_negatives_and_counted(files, tmp_path):
    items = "item_id:token\ttitle:token\n" + "".join(f"{n}\tAlbum {n}\n" for n in range(1, 13))
    inter = SEQUENCE_HEADER + "u\t7 8\t9\nu\t1 2 3 4 5\t6\nv\t7 8 9 10 11\t12\n"
    folder, out = files({"x.inter": inter, "x.item": items}), tmp_path / "out"
    protocol = {"train_users": 0, "validation_users": 0, "test_users": 2, "negatives": 3}
    report = prepare("recbole", out, folder=folder, **protocol)
    assert report.counts["unplaced_interactions"] == 3
    assert "at no known place in a user's sequence │ 3 " in show(out)
    last = Dataset.load(out).case("u/1")
    assert {item.item_id for item in last.candidates} == {"6", "10", "11", "12"}

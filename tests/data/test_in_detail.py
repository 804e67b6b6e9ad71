"""What the other tests of these parts leave open."""

from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest

from starec_ray.data.candidates import NegativeDraw, name_codes
from starec_ray.data.cases import make_cases
from starec_ray.data.dataset import Dataset
from starec_ray.data.prepare import prepare
from starec_ray.data.protocol import Protocol
from starec_ray.data.sources import amazon, recbole
from starec_ray.data.sources.movielens import read_100k
from starec_ray.data.sources.synthetic import read
from starec_ray.errors import DataError
from tests.data.test_amazon import NAMED, OLD_REVIEWS, lines
from tests.data.test_cases import log_of, raw_data, silent
from tests.data.test_dataset import folder, spoil
from tests.data.test_movielens import GOOD
from tests.data.test_recbole import INTER, SEQUENCE_HEADER
from tests.data.test_recbole import ITEMS as ATOMIC


def test_what_is_rated_above_the_threshold_is_liked_and_is_a_target():
    log = [("u0", f"i{n}", rating, n) for n, rating in enumerate([4.0, 4.5, 5.0, 4.5, 4.0])]
    protocol = Protocol(
        min_user_interactions=1, min_item_interactions=1, train_users=1, validation_users=0,
        test_users=0, negatives=1, rounds=1, positive_above=4.0,
    )  # fmt: skip
    others = [("u1", f"i{n}", 1.0, n) for n in range(5, 9)]
    tables = make_cases(raw_data(log + others), protocol, silent).tables
    [case] = tables["cases"].to_pylist()
    assert case["history_liked"] == [False, True, True]
    assert tables["targets"]["item_id"].to_pylist() == ["i3"]


def test_another_seed_deals_other_users_and_draws_other_candidates():
    protocol = Protocol(
        min_user_interactions=1, min_item_interactions=1, train_users=4, validation_users=2,
        test_users=3, negatives=5,
    )  # fmt: skip
    raw = raw_data(log_of(30, 4))
    first, other = (
        {case["case_id"]: case for case in make_cases(raw, p, silent).tables["cases"].to_pylist()}
        for p in (protocol, replace(protocol, seed=1))
    )
    assert first.keys() != other.keys()
    everyone = replace(protocol, train_users=30, validation_users=0, test_users=0)
    first, other = (
        {
            case["case_id"]: case["candidates"]
            for case in make_cases(raw, p, silent).tables["cases"].to_pylist()
        }
        for p in (everyone, replace(everyone, seed=1))
    )
    assert sum(set(first[case_id]) == set(other[case_id]) for case_id in first) < 3


def test_each_round_of_a_user_has_its_own_negatives():
    protocol = Protocol(
        min_user_interactions=1, min_item_interactions=1, train_users=30, validation_users=0,
        test_users=0, negatives=5,
    )  # fmt: skip
    tables = make_cases(raw_data(log_of(30, 4)), protocol, silent).tables
    targets = set(zip(*tables["targets"].to_pydict().values(), strict=True))
    negatives = {
        case["case_id"]: {i for i in case["candidates"] if (case["case_id"], i) not in targets}
        for case in tables["cases"].to_pylist()
    }
    alike = sum(negatives[f"u{user}/0"] == negatives[f"u{user}/1"] for user in range(30))
    assert alike < 3


def test_the_target_has_any_place_among_the_candidates():
    protocol = Protocol(
        min_user_interactions=1, min_item_interactions=1, train_users=400, validation_users=0,
        test_users=0, negatives=4, rounds=1,
    )  # fmt: skip
    everyone = [(f"u{u}", f"i{n}", 4.0, n) for u in range(400) for n in (0, 1)]
    rest = [("other", f"i{n}", 1.0, n) for n in range(2, 27)]
    cases = make_cases(raw_data(everyone + rest), protocol, silent).tables["cases"].to_pylist()
    places = np.bincount([case["candidates"].index("i1") for case in cases], minlength=5)
    assert places.min() > 50  # 80 expected each, sd 8


def test_a_title_of_two_years_is_two_names():
    catalog = pa.table(
        {"title": ["Psycho", "PSYCHO", "Psycho"], "year": pa.array([1960, 1960, 1998], pa.int16())}
    )
    assert name_codes(catalog).tolist() == [0, 0, 1]


def test_a_published_candidate_is_not_drawn_once_more():
    draw = NegativeDraw(raw_data(log_of(1, 1)).catalog, np.arange(8), {"u0": ["i0", "i1"]}, {})
    user = draw.untouched("u0", np.array([7]))
    for seed in range(20):
        drawn = draw.draw(np.random.default_rng(seed), user, 7, block=0)
        assert sorted(drawn) == list(range(7))


def test_of_repeated_interactions_the_earliest_counts():
    log = [*log_of(2, 3), ("u0", "i1", 1.0, 99), ("u0", "i1", 1.0, 98)]
    protocol = Protocol(
        min_user_interactions=1, min_item_interactions=1, train_users=1, validation_users=0,
        test_users=0, negatives=1, rounds=1,
    )  # fmt: skip
    prepared = make_cases(raw_data(log), protocol, silent)
    rows = [row for row in prepared.tables["interactions"].to_pylist() if row["user_id"] == "u0"]
    assert [(row["item_id"], row["timestamp"]) for row in rows] == [("i0", 0), ("i1", 1), ("i2", 2)]
    assert prepared.counts["repeated_interactions"] == 2


def test_the_defaults_are_the_papers():
    assert asdict(Protocol()) == {
        "min_user_interactions": 10,
        "min_item_interactions": 10,
        "max_history": 40,
        "positive_above": 3.0,
        "train_users": 1000,
        "validation_users": 200,
        "test_users": 1000,
        "negatives": 19,
        "train_negatives": None,
        "rounds": 2,
        "seed": 0,
    }


@pytest.mark.parametrize("name", ["max_history", "negatives", "train_negatives", "rounds"])
def test_what_must_be_at_least_one_is_refused_at_none(name):
    with pytest.raises(DataError, match=f"{name} is 0, must be at least 1"):
        Protocol(**{name: 0})


def test_more_rounds_than_their_number_can_hold_are_refused():
    with pytest.raises(DataError, match="rounds is 128, must be at most 127"):
        Protocol(rounds=128)


GENRES = "unknown|0\nAction|1\n"
FILMS_100K = "1|Heat (1995)|||http://x|0|1\n2|Fargo (1996)|||http://x|0|1\n"


def hundred_k(**changes: str) -> dict[str, str]:
    texts = {
        "genre": GENRES,
        "item": FILMS_100K,
        "user": "1|24|M|technician|85711\n",
        "data": "1\t1\t4\t1\n1\t2\t5\t2\n",
    }
    return {f"u.{name}": text for name, text in (texts | changes).items()}


def test_an_age_in_years_is_told_as_the_range_that_holds_it(files):
    years = {0: "under 18", 17: "under 18", 18: "18-24", 24: "18-24", 25: "25-34", 55: "50-55"}
    years |= {56: "56 or over", 99: "56 or over"}
    users = "".join(f"{n}|{age}|M|other|1\n" for n, age in enumerate(years))
    raw = read_100k(files(hundred_k(user=users)), False, lambda message: None)
    profiles = map(dict, raw.users["profile"].to_pylist())
    assert [profile["age"] for profile in profiles] == list(years.values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"genre": "unknown|1\nAction|0\n"}, "the genres are not numbered 0, 1, 2"),
        ({"user": "1|24|X|other|1\n"}, "expected one of M, F as Gender, found 'X'"),
        ({"data": "1\t1\t5.5\t1\n"}, "a Rating from 0.5 to 5, found '5.5'"),
        ({"user": "1|old|M|other|1\n"}, "expected an age in years, found 'old'"),
    ],
)
def test_what_is_wrong_in_movielens_100k_is_named(files, changes, expected):
    with pytest.raises(DataError) as raised:
        read_100k(files(hundred_k(**changes)), False, lambda message: None)
    assert expected in str(raised.value)


def test_of_sequences_of_one_length_the_test_file_s_is_taken(files):
    contents = {
        "x.train.inter": SEQUENCE_HEADER + "u\t1 2\t3\n",
        "x.test.inter": SEQUENCE_HEADER + "u\t1 2\t4\n",
        "x.item": ATOMIC,
    }
    read = recbole.read(files(contents), False, lambda text: None)
    assert read.interactions["item_id"].to_pylist() == ["1", "2", "4"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"other.inter": INTER}, "several data sets: ml, other"),
        ({"other.item": ATOMIC}, "holds 2 .item files, expected one"),
        (
            {"ml.test.inter": SEQUENCE_HEADER + "a\t1\t2\n"},
            "some .inter files have an item_id_list",
        ),
    ],
)
def test_files_that_make_no_one_data_set_are_refused(files, more, expected):
    with pytest.raises(DataError) as raised:
        recbole.read(files({"ml.inter": INTER, "ml.item": ATOMIC} | more), False, print)
    assert expected in str(raised.value)


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


def test_simulated_ratings_are_one_to_five_stars():
    ratings = set(read(200, 0, lambda message: None).interactions["rating"].to_pylist())
    assert ratings == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_five_bad_rows_are_all_shown(files, tmp_path):
    folder = files(GOOD | {"ratings.dat": "bad\n" * 5})
    with pytest.raises(DataError, match=r"ratings\.dat: 5 bad rows:\n") as raised:
        prepare("movielens-1m", tmp_path / "out", folder=folder)
    assert "the first" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("users", "users: user_id '.*' is there more than once"),
        ("cases", "cases: case_id '.*' is there more than once"),
    ],
)
def test_a_repeated_id_is_named(folder, name, message):
    spoil(folder, name, lambda t: pa.concat_tables([t, t.slice(0, 1)]))
    with pytest.raises(DataError, match=message):
        Dataset.load(folder)


def test_no_row_stands_in_front_of_or_behind_those_of_a_later_file(files):
    from tests.data.test_recbole import read_sequences

    read = read_sequences(files, train=["u\t1 2 3\t4\n"], test=["u\t7 8\t1\n"])
    assert read == ([1, 2, 3, 4], {"u": ["7", "8"]})
    train = ["u\t8 9 10\t11\n", "u\t1 2 3\t4\n", "u\t2 3 4\t5\n"]
    read = read_sequences(files, train=train, test=["u\t5\t8\n"])
    assert read == ([1, 2, 3, 4, 5, 8], {"u": ["9", "10", "11"]})

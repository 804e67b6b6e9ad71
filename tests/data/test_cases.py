"""The protocol's invariants, over raw data of every shape that Hypothesis finds."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starec_ray import schemas
from starec_ray.data.cases import make_cases
from starec_ray.data.protocol import SPLITS, Protocol
from starec_ray.data.raw import RAW_CATALOG, RAW_INTERACTIONS, RawData, users_table
from starec_ray.errors import DataError

ITEMS = 40


def silent(message: str) -> None:
    pass


def raw_data(log: list[tuple], titles: list[str] | None = None) -> RawData:
    ids = [f"i{number}" for number in range(ITEMS)]
    catalog = pa.table(
        {
            "item_id": ids,
            "title": titles or [f"Title {item}" for item in ids],
            "year": [None] * ITEMS,
            "tags": [[]] * ITEMS,
            "people": [[]] * ITEMS,
        },
        schema=RAW_CATALOG,
    )
    columns = zip(*log, strict=True)
    interactions = pa.table([pa.array(column) for column in columns], schema=RAW_INTERACTIONS)
    return RawData("hand-made", catalog, users_table({"u0": {"age": "9"}}), interactions)


logs = st.lists(
    st.tuples(
        st.integers(0, 5).map("u{}".format),
        st.integers(0, ITEMS + 1).map("i{}".format),  # two are in no catalog
        st.sampled_from([1.0, 3.0, 4.0, 5.0, None]),
        st.sampled_from([None, 1, 2, 3, 50]),
    ),
    min_size=30,
    max_size=120,
)
protocols = st.builds(
    Protocol,
    min_user_interactions=st.integers(0, 3),
    min_item_interactions=st.integers(0, 2),
    max_history=st.integers(1, 6),
    train_users=st.just(1),
    validation_users=st.integers(0, 1),
    test_users=st.just(1),
    negatives=st.integers(1, 5),
    rounds=st.integers(1, 3),
    seed=st.integers(0, 3),
)


@given(logs, protocols)
@settings(max_examples=80)
def test_every_case_keeps_the_protocol(log, protocol):
    raw = raw_data(log)
    try:
        prepared = make_cases(raw, protocol, silent)
    except DataError as error:
        assert "too few" in str(error)
        return
    tables = {name: table.to_pylist() for name, table in prepared.tables.items()}
    targets = {row["case_id"]: row["item_id"] for row in tables["targets"]}
    catalog = {row["item_id"]: row for row in tables["catalog"]}
    touched: dict[str, set[str]] = {}
    for user, item, _, _ in log:
        touched.setdefault(user, set()).add(item)
    timeline: dict[str, list[dict]] = {}
    for row in tables["interactions"]:
        timeline.setdefault(row["user_id"], []).append(row)
    for user, rows in timeline.items():
        assert [row["position"] for row in rows] == list(range(len(rows)))
        times = [row["timestamp"] or 0 for row in rows]
        assert times == sorted(times)
        assert len({row["item_id"] for row in rows}) == len(rows) >= protocol.min_user_interactions
        assert user in {row["user_id"] for row in tables["users"]}
    counted = np.array([len(timeline[user]) for user in timeline]).sum()
    assert counted == prepared.counts["interactions"]

    split_of: dict[str, str] = {}
    by_user: dict[str, list[dict]] = {}
    for case in tables["cases"]:
        assert split_of.setdefault(case["user_id"], case["split"]) == case["split"]
        by_user.setdefault(case["user_id"], []).append(case)
    for split in SPLITS:
        users = [user for user in split_of if split_of[user] == split]
        assert len(users) == getattr(protocol, f"{split}_users")
    for user, cases in by_user.items():
        rows = timeline[user]
        liked = [row for row in rows if row["rating"] is None or row["rating"] > 3]
        assert [case["round"] for case in cases] == list(range(protocol.rounds))
        for case, row in zip(cases, liked[-protocol.rounds :], strict=True):
            target = targets[case["case_id"]]
            assert target == row["item_id"]
            before = rows[: row["position"]][-protocol.max_history :]
            assert before
            assert case["history"] == [it["item_id"] for it in before]
            assert case["history_liked"] == [
                it["rating"] is None or it["rating"] > 3 for it in before
            ]
            assert case["activity"] == len(rows)
            negatives = [item for item in case["candidates"] if item != target]
            assert len(negatives) == protocol.negatives
            assert len(set(case["candidates"])) == protocol.negatives + 1
            assert not touched[user] & set(negatives)
            assert set(case["candidates"]) <= set(catalog)
            following = f"{user}/{case['round'] + 1}"
            assert case["next_case_id"] == (following if following in targets else None)
    hidden = {(case["user_id"], targets[case["case_id"]]) for case in tables["cases"]}
    for item, row in catalog.items():
        seen = [r for r in tables["interactions"] if r["item_id"] == item]
        visible = [r for r in seen if (r["user_id"], item) not in hidden]
        assert row["popularity"] == len(visible)
        assert len(seen) >= max(protocol.min_item_interactions, 1)


@given(logs, protocols)
@settings(max_examples=10)
def test_the_same_seed_gives_the_same_tables(log, protocol):
    try:
        first = make_cases(raw_data(log), protocol, silent)
    except DataError:
        return
    again = make_cases(raw_data(log), protocol, silent)
    assert all(first.tables[name].equals(again.tables[name]) for name in first.tables)


def log_of(users: int, items: int) -> list[tuple]:
    return [(f"u{u}", f"i{(u + n) % ITEMS}", 4.0, n) for u in range(users) for n in range(items)]


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


def test_cases_tables_have_the_schemas_and_no_target_column():
    protocol = Protocol(
        train_users=2, validation_users=1, test_users=1, min_item_interactions=1, negatives=4
    )
    tables = make_cases(raw_data(log_of(6, 12)), protocol, silent).tables
    assert tables["cases"].schema.equals(schemas.CASES)
    assert tables["targets"].schema.equals(schemas.TARGETS)
    assert tables["catalog"].schema.equals(schemas.CATALOG)
    assert "item_id" not in tables["cases"].column_names


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


def test_more_training_users_leave_the_test_cases_as_they_are():
    def test_cases(train_users: int) -> list[dict]:
        protocol = Protocol(
            train_users=train_users,
            validation_users=1,
            test_users=2,
            min_item_interactions=1,
            negatives=4,
        )
        cases = make_cases(raw_data(log_of(8, 12)), protocol, silent).tables["cases"]
        return [case for case in cases.to_pylist() if case["split"] == "test"]

    assert test_cases(1) == test_cases(4)


def test_too_few_users_says_how_many_there_are():
    protocol = Protocol(train_users=5, validation_users=1, test_users=1, min_item_interactions=1)
    with pytest.raises(
        DataError, match=r"= 7 are asked for, 6 are eligible \(of 6 users"
    ) as raised:
        make_cases(raw_data(log_of(6, 12)), protocol, silent)
    assert "--train-users" in str(raised.value)


@pytest.mark.parametrize(("above", "liked"), [(-1e39, {True}), (1e39, set())])
@pytest.mark.filterwarnings("error")
def test_ratings_are_compared_with_a_number_of_any_size(above, liked):
    protocol = Protocol(
        train_users=1, validation_users=0, test_users=0, min_item_interactions=1, negatives=4,
        positive_above=above,
    )  # fmt: skip
    try:
        cases = make_cases(raw_data(log_of(6, 12)), protocol, silent).tables["cases"].to_pylist()
    except DataError as error:
        assert "0 are eligible" in str(error)
        cases = []
    assert {each for case in cases for each in case["history_liked"]} == liked

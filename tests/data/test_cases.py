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


def test_cases_tables_have_the_schemas_and_no_target_column():
    protocol = Protocol(
        train_users=2, validation_users=1, test_users=1, min_item_interactions=1, negatives=4
    )
    tables = make_cases(raw_data(log_of(6, 12)), protocol, silent).tables
    assert tables["cases"].schema.equals(schemas.CASES)
    assert tables["targets"].schema.equals(schemas.TARGETS)
    assert tables["catalog"].schema.equals(schemas.CATALOG)
    assert "item_id" not in tables["cases"].column_names


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


def test_the_core_is_taken_until_nothing_more_falls_out():
    # u3 falls below 3 only once i39, which it alone knows, is gone.
    log = [*log_of(3, 3), ("u3", "i0", 4.0, 1), ("u3", "i2", 4.0, 2), ("u3", "i39", 4.0, 3)]
    protocol = Protocol(
        min_user_interactions=3, min_item_interactions=2, train_users=0, validation_users=0,
        test_users=1, negatives=1,
    )  # fmt: skip
    with pytest.raises(
        DataError, match=r"too few users: 0 train \+ 0 validation \+ 1 test = 1 are"
    ):
        make_cases(raw_data(log), protocol, silent)


def test_too_few_users_says_how_many_there_are():
    protocol = Protocol(train_users=5, validation_users=1, test_users=1, min_item_interactions=1)
    with pytest.raises(
        DataError, match=r"= 7 are asked for, 6 are eligible \(of 6 users"
    ) as raised:
        make_cases(raw_data(log_of(6, 12)), protocol, silent)
    assert "--train-users" in str(raised.value)


def test_too_small_a_catalog_is_refused():
    protocol = Protocol(
        train_users=1, validation_users=0, test_users=0, min_item_interactions=1, negatives=39
    )
    with pytest.raises(DataError, match="too few items of the catalog untouched for 39 negatives"):
        make_cases(raw_data(log_of(6, 12)), protocol, silent)


@pytest.mark.parametrize("negatives", [10**9, 10**15, 10**20])
def test_more_negatives_than_there_are_items_are_refused_before_they_are_drawn(negatives):
    protocol = Protocol(
        train_users=1, validation_users=0, test_users=0, min_item_interactions=1,
        negatives=negatives,
    )  # fmt: skip
    with pytest.raises(DataError, match=f"untouched for {negatives} negatives"):
        make_cases(raw_data(log_of(6, 12)), protocol, silent)


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


def test_items_touched_at_an_unknown_time_are_neither_negatives_nor_in_a_history():
    protocol = Protocol(
        train_users=1, validation_users=0, test_users=0, min_user_interactions=1,
        min_item_interactions=1, negatives=10, rounds=1,
    )  # fmt: skip
    log = [*log_of(1, 4), *((f"u{n}", f"i{n}", 1.0, 1) for n in range(4, 20))]
    raw = replace(raw_data(log), unplaced={"u0": [f"i{n}" for n in range(4, 10)] + ["elsewhere"]})
    [case] = make_cases(raw, protocol, silent).tables["cases"].to_pylist()
    assert case["history"] == ["i0", "i1", "i2"]
    assert set(case["candidates"]) == {"i3", *(f"i{n}" for n in range(10, 20))}


def test_no_two_candidates_share_a_name():
    titles = [
        f"Greatest {'HITS' if number % 2 else 'Hits'} {number // 4}" for number in range(ITEMS)
    ]
    protocol = Protocol(
        train_users=2, validation_users=0, test_users=0, min_item_interactions=1, negatives=4,
        min_user_interactions=1,
    )  # fmt: skip
    raw = raw_data(log_of(30, 4), titles)
    names = dict(zip(raw.catalog["item_id"].to_pylist(), titles, strict=True))
    for case in make_cases(raw, protocol, silent).tables["cases"].to_pylist():
        shown = [names[item].lower() for item in case["candidates"]]
        assert len(set(shown)) == len(shown)


def test_negatives_are_uniform_over_the_untouched_items():
    protocol = Protocol(
        min_user_interactions=1, min_item_interactions=1, train_users=400, validation_users=0,
        test_users=0, negatives=5, rounds=1,
    )  # fmt: skip
    everyone = [(f"u{u}", f"i{n}", 4.0, n) for u in range(400) for n in (0, 1)]
    rest = [("other", f"i{n}", 1.0, n) for n in range(2, 27)]
    tables = make_cases(raw_data(everyone + rest), protocol, silent).tables
    drawn = np.concatenate([case["candidates"] for case in tables["cases"].to_pylist()])
    counts = np.array([np.sum(drawn == f"i{n}") for n in range(2, 27)])
    assert counts.sum() == 400 * 5
    # 25 items, 80 expected each, sd about 8.
    assert counts.min() > 45 and counts.max() < 115


def test_fewer_negatives_for_training_users_leave_the_other_cases_as_they_are():
    usual = Protocol(
        min_user_interactions=1, min_item_interactions=1, train_users=4, validation_users=2,
        test_users=3, negatives=5,
    )  # fmt: skip
    raw = raw_data(log_of(30, 4))
    cases = make_cases(raw, usual, silent).tables["cases"].to_pylist()
    fewer = replace(usual, train_negatives=2)
    for before, after in zip(
        cases, make_cases(raw, fewer, silent).tables["cases"].to_pylist(), strict=True
    ):
        if before["split"] == "train":
            assert len(after["candidates"]) == 3 and len(before["candidates"]) == 6
        else:
            assert after == before


def test_unusable_parameters_are_refused():
    with pytest.raises(DataError, match="negatives is 0, must be at least 1"):
        Protocol(negatives=0)
    with pytest.raises(DataError, match="train_negatives is 0, must be at least 1"):
        Protocol(train_negatives=0)
    with pytest.raises(DataError, match="train_users, validation_users and test_users are all 0"):
        Protocol(train_users=0, validation_users=0, test_users=0)


def test_files_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match="none of them with an item of the catalog"):
        make_cases(raw_data([("u0", "elsewhere", 4.0, 1)]), Protocol(), silent)

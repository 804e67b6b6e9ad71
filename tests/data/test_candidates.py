"""What stands beside a target: negatives that the user never touched, drawn evenly."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from starec_ray.data.candidates import NegativeDraw, name_codes
from starec_ray.data.cases import make_cases
from starec_ray.data.protocol import Protocol
from starec_ray.errors import DataError
from tests.data.test_cases import ITEMS, log_of, raw_data, silent


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

"""The log that cases are cut from: what counts of the interactions, and its core."""

import pytest

from starec_ray.data.cases import make_cases
from starec_ray.data.protocol import Protocol
from starec_ray.errors import DataError
from tests.data.test_cases import log_of, raw_data, silent


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


def test_files_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match="none of them with an item of the catalog"):
        make_cases(raw_data([("u0", "elsewhere", 4.0, 1)]), Protocol(), silent)

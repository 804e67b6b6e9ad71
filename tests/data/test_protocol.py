"""The protocol's parameters: the paper's where nothing else is said, unusable ones refused."""

from dataclasses import asdict

import pytest

from starec_ray.data.protocol import Protocol
from starec_ray.errors import DataError


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


def test_a_protocol_without_users_is_refused():
    with pytest.raises(DataError, match="train_users, validation_users and test_users are all 0"):
        Protocol(train_users=0, validation_users=0, test_users=0)

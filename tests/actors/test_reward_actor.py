"""Reward actors: an array in, an array out, and nobody else knows the targets."""

import pyarrow as pa
import pytest

from actors.reward_actor import RewardActor, RewardGroup
from starec_ray.errors import DataError
from tests.small_world import TARGET


def rankings(case_ids, order=("3", "0", "1", "2"), malformed=False) -> pa.Table:
    return pa.table(
        {
            "case_id": list(case_ids),
            "ranking": [list(order)] * len(case_ids),
            "malformed": [malformed] * len(case_ids),
        }
    )


def test_a_ranking_is_scored_and_the_choice_revealed(small_world):
    scores = RewardActor(str(small_world), "tiers").score(
        pa.concat_tables([rankings(["u0/0"]), rankings(["u1/1"], order="0312")])
    )
    assert scores["reward"].to_pylist() == [1.0, 0.5]
    assert scores["target_rank"].to_pylist() == [1, 2]
    assert scores["chosen"].to_pylist() == [TARGET, TARGET]


def test_a_malformed_ranking_earns_minus_one_and_keeps_its_rank(small_world):
    scores = RewardActor(str(small_world), "ndcg").score(rankings(["u0/0"], malformed=True))
    assert scores["reward"].to_pylist() == [-1.0]
    assert scores["target_rank"].to_pylist() == [1]


def test_a_case_without_a_target_is_named(small_world):
    with pytest.raises(DataError, match="nobody/7"):
        RewardActor(str(small_world), "tiers").score(rankings(["nobody/7"]))


@pytest.mark.engine
def test_a_request_is_shared_out_and_comes_back_in_order(small_world, ray_cluster):
    group = RewardGroup(str(small_world), "tiers", num_actors=3, timeout_s=60.0)
    cases = [f"u{i}/{i % 2}" for i in range(20)]
    try:
        assert group.score(rankings(cases))["case_id"].to_pylist() == cases
        with pytest.raises(DataError, match="nobody/7"):
            group.score(rankings(["nobody/7"]))
    finally:
        group.stop()

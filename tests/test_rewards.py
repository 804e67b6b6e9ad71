"""Rewards by rank, and the advantages within a group."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starec_ray.rewards import (
    REWARD_SHAPES,
    group_advantages,
    ndcg_rewards,
    reciprocal_rank_rewards,
    tier_rewards,
)

ranks = st.lists(st.integers(0, 20), min_size=1, max_size=50)


def test_tiers_are_those_of_the_paper():
    assert tier_rewards([0, 1, 2, 5, 6, 10, 11, 20]).tolist() == [
        *(-1.0, 1.0, 0.5, 0.5, 0.0, 0.0, -0.5, -0.5)
    ]


def test_a_random_permutation_of_twenty_earns_minus_a_tenth_in_tiers():
    assert tier_rewards(np.arange(1, 21)).mean() == pytest.approx(-0.10)


def test_smooth_rewards_by_hand():
    assert reciprocal_rank_rewards([0, 1, 4]).tolist() == [-1.0, 1.0, 0.25]
    assert ndcg_rewards([0, 1, 3, 7]) == pytest.approx([-1.0, 1.0, 0.5, 1 / 3])


@pytest.mark.parametrize("shape", REWARD_SHAPES)
@given(values=ranks)
def test_rewards_fall_with_rank_and_malformed_is_worst(shape, values):
    rewards = REWARD_SHAPES[shape](values)
    assert rewards.dtype == np.float32 and len(rewards) == len(values)
    badness = [21 if rank == 0 else rank for rank in values]
    in_order = rewards[np.argsort(badness, kind="stable")]
    assert np.all(np.diff(in_order) <= 0)
    assert np.all((rewards >= -1) & (rewards <= 1))


def test_advantages_by_hand():
    advantages = group_advantages([1.0, 0.0, 5.0, 5.0], [7, 7, 3, 3])
    assert advantages == pytest.approx([1.0, -1.0, 0.0, 0.0], abs=1e-5)


@given(
    rewards=st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=8, max_size=8),
    groups=st.lists(st.integers(0, 2), min_size=8, max_size=8),
)
def test_advantages_have_mean_zero_and_unit_variance_in_each_group(rewards, groups):
    advantages = group_advantages(rewards, groups)
    for group in set(groups):
        member = np.asarray(groups) == group
        assert advantages[member].mean() == pytest.approx(0, abs=1e-5)
        spread = np.asarray(rewards)[member].std()
        assert advantages[member].std() == pytest.approx(1.0 if spread else 0.0, abs=1e-4)


@pytest.mark.parametrize("size", range(2, 17))
def test_a_group_of_equal_rewards_has_no_advantages_however_their_mean_is_rounded(size):
    rewards, groups = ndcg_rewards(np.arange(1, 21)).repeat(size), np.arange(20).repeat(size)
    assert not group_advantages(rewards, groups).any()

"""What the other tests of these parts leave open."""

import numpy as np
import pytest

from starec_ray.metrics import bootstrap_interval, paired_difference
from starec_ray.rewards import group_advantages, ndcg_rewards


def test_a_seed_draws_its_own_resamples_and_a_lower_level_leaves_more_out() -> None:
    a, b = np.random.default_rng(4).random((2, 60))
    low, high = bootstrap_interval(a, seed=1)
    assert bootstrap_interval(a, seed=2) != (low, high)
    inner_low, inner_high = bootstrap_interval(a, seed=1, level=0.5)
    assert low < inner_low < inner_high < high
    found = paired_difference(a, b, seed=1)
    assert paired_difference(a, b, seed=2).interval != found.interval
    inner = paired_difference(a, b, seed=1, level=0.5).interval
    assert found.interval[0] < inner[0] < inner[1] < found.interval[1]


@pytest.mark.parametrize("size", range(2, 17))
def test_a_group_of_equal_rewards_has_no_advantages_however_their_mean_is_rounded(size):
    rewards, groups = ndcg_rewards(np.arange(1, 21)).repeat(size), np.arange(20).repeat(size)
    assert not group_advantages(rewards, groups).any()

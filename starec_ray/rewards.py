"""Rewards of rankings by the rank of the one held-out target, and advantages within groups.

Every function is vectorised over rollouts. Ranks are 1-based; 0 stands for a ranking that is
malformed: whatever it says, it earns `MALFORMED`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

MALFORMED = -1.0
EPSILON = 1e-6

Rewards = NDArray[np.float32]


def tier_rewards(ranks: ArrayLike) -> Rewards:
    """STARec's tiers: 1 → +1, 2–5 → +0.5, 6–10 → 0, 11 and beyond → -0.5, malformed → -1.

    Args:
        ranks: int [rollouts].

    Returns:
        float32 [rollouts]; five values, so that many groups have no variance.
    """
    found = np.asarray(ranks)
    tiers = np.select([found <= 1, found <= 5, found <= 10], [1.0, 0.5, 0.0], -0.5)
    return _with_malformed(found, tiers)


def reciprocal_rank_rewards(ranks: ArrayLike) -> Rewards:
    """1 / rank, in 0 … 1; malformed → -1. Shapes as in `tier_rewards`."""
    found = np.asarray(ranks)
    return _with_malformed(found, 1.0 / np.maximum(found, 1))


def ndcg_rewards(ranks: ArrayLike) -> Rewards:
    """1 / log2(rank + 1), the NDCG of one relevant item; malformed → -1. Shapes as above."""
    found = np.asarray(ranks)
    return _with_malformed(found, 1.0 / np.log2(np.maximum(found, 1) + 1.0))


REWARD_SHAPES: dict[str, Callable[[ArrayLike], Rewards]] = {
    "tiers": tier_rewards,
    "reciprocal_rank": reciprocal_rank_rewards,
    "ndcg": ndcg_rewards,
}


def group_advantages(rewards: ArrayLike, groups: ArrayLike) -> Rewards:
    """GRPO's advantages: (reward - mean) / std of its group (DeepSeekMath, 2402.03300, 4.1.2).

    Args:
        rewards: float [rollouts].
        groups: int [rollouts], equal for the rollouts of one prompt.

    Returns:
        float32 [rollouts]; zero throughout a group without variance.
    """
    values = np.asarray(rewards, dtype=np.float64)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    count = np.bincount(group)
    centred = values - (np.bincount(group, weights=values) / count)[group]
    std = np.sqrt(np.bincount(group, weights=centred**2) / count)[group]
    return np.where(std > EPSILON, centred / (std + EPSILON), 0.0).astype(np.float32)


def _with_malformed(ranks: NDArray, rewards: NDArray) -> Rewards:
    return np.where(ranks > 0, rewards, MALFORMED).astype(np.float32)

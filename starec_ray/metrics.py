"""Ranking metrics with one held-out target a case, and how sure one may be of their means.

Every case has a rank: an incomplete ranking is completed with the candidates it left out, in the
order shown, before it comes here. Metrics return one value a case, so that a mean, an interval
or a paired comparison can be taken of the same numbers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 2_000
LEVEL = 0.95
_BLOCK = 1 << 22  # resampled values held at once (32 MiB)


def ndcg_at(ranks: ArrayLike, k: int) -> Floats:
    """NDCG@k of each case: 1 / log2(1 + rank) if rank <= k, else 0.

    With a single relevant item the ideal DCG is 1 for every k (Järvelin and Kekäläinen, 2002).

    Args:
        ranks: 1-based ranks of the targets, int array [cases].
        k: the cut-off, at least 1; one beyond the number of candidates cuts nothing.

    Raises:
        ValueError: if a rank or k is below 1.
    """
    checked = _checked(ranks, k)
    return np.where(checked <= k, 1.0 / np.log2(1.0 + checked), 0.0)


def hit_rate_at(ranks: ArrayLike, k: int) -> Floats:
    """Hit rate @k of each case: 1 if rank <= k, else 0. Equals NDCG@k where k is 1.

    Arguments and errors as in `ndcg_at`.
    """
    return (_checked(ranks, k) <= k).astype(np.float64)


def reciprocal_rank(ranks: ArrayLike) -> Floats:
    """1 / rank of each case; its mean is the MRR. Raises ValueError if a rank is below 1."""
    return 1.0 / _checked(ranks)


def rank_with_ties(scores: ArrayLike, rng: np.random.Generator) -> Ints:
    """The 1-based rank of each item, highest score first, int array beside `scores` [items].

    Equal scores are put in a random order drawn from `rng`: each item of a tie group is equally
    likely to have any of the group's ranks, so that metrics are unbiased. Keeping the order
    listed instead rewards whoever lists the target first, and a ranker that gives every item the
    same score would seem perfect.

    Raises:
        ValueError: for a score that is not a number, which has no place in any order.
    """
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError(f"item {int(np.isnan(values).argmax())} has a score that is not a number")
    order = np.lexsort((rng.permutation(len(values)), -values))
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(1, len(values) + 1)
    return ranks


def bootstrap_interval(
    values: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron, 1979): (low, high).

    Args:
        values: one value a case, float array [cases], at least one.
        seed: the same seed and values give the same interval.
        resamples: samples of the cases drawn with replacement.
        level: the share of resampled means inside the interval.
    """
    low, high = _interval(_resampled_means(values, seed, resamples), level)
    return low, high


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The mean of `a - b` over the same cases, its interval, and the two-sided p of no difference.

    `p` is never 0: the observed sample counts as one of the resamples.
    """

    difference: float
    interval: tuple[float, float]
    p: float


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> PairedDifference:
    """Paired bootstrap of two rankers over the same cases: cases are resampled in pairs.

    The p value inverts the percentile interval: twice the smaller share of resampled mean
    differences on either side of zero (zeros count on both), so that p < 1 - level where the
    interval leaves zero out, to within a resample.

    Args:
        a, b: one value a case, float arrays [cases], case by case beside each other.

    Raises:
        ValueError: if their lengths differ.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values need the same cases: {first.shape} and {second.shape}")
    difference = first - second
    means = _resampled_means(difference, seed, resamples)
    side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (side + 1) / (resamples + 1))
    return PairedDifference(float(difference.mean()), _interval(means, level), p)


def _checked(ranks: ArrayLike, k: int = 1) -> Ints:
    values = np.asarray(ranks)
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"ranks are integers, not {values.dtype}")
    if k < 1 or (values.size and values.min() < 1):
        raise ValueError(
            f"ranks and cut-offs count from 1 (k = {k}, ranks {values.min(initial=1)})"
        )
    return values.astype(np.int64)


def _resampled_means(values: ArrayLike, seed: int, resamples: int) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size:
        raise ValueError(f"a bootstrap needs one value a case and at least one, not {sample.shape}")
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(sample))
    blocks = [
        sample[rng.integers(0, len(sample), (min(rows, resamples - start), len(sample)))].mean(1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(blocks)


def _interval(means: Floats, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)

"""Ranking metrics: values worked by hand, properties, ties, and the bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starec_ray.metrics import (
    bootstrap_interval,
    hit_rate_at,
    ndcg_at,
    paired_difference,
    rank_with_ties,
    reciprocal_rank,
)

RANKS = st.lists(st.integers(1, 40), min_size=1, max_size=30)
CUTS = st.integers(1, 60)


def test_ndcg_worked_by_hand() -> None:
    # 1 / log2(2), 1 / log2(3), 1 / log2(4), beyond the cut-off
    assert ndcg_at([1, 2, 3, 11], 10) == pytest.approx([1.0, 0.6309297535714575, 0.5, 0.0])


def test_the_cut_off_itself_still_counts() -> None:
    assert ndcg_at([5, 6], 5) == pytest.approx([1 / np.log2(6), 0.0])
    assert hit_rate_at([5, 6], 5).tolist() == [1.0, 0.0]


def test_a_cut_off_beyond_the_candidates_cuts_nothing() -> None:
    assert ndcg_at([20], 1000) == ndcg_at([20], 20)


def test_reciprocal_rank_worked_by_hand() -> None:
    assert reciprocal_rank([1, 2, 4]).tolist() == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(("k", "percent"), [(1, 5.0), (5, 14.7), (10, 22.7), (20, 35.2)])
def test_random_order_of_20_candidates_scores_its_expectation(k: int, percent: float) -> None:
    assert round(100 * ndcg_at(np.arange(1, 21), k).mean(), 1) == percent


@pytest.mark.parametrize("metric", [ndcg_at, hit_rate_at])
def test_ranks_and_cut_offs_below_one_are_refused(metric) -> None:
    with pytest.raises(ValueError, match="count from 1"):
        metric([1, 0], 5)
    with pytest.raises(ValueError, match="count from 1"):
        metric([1], 0)
    with pytest.raises(ValueError, match="integers"):
        metric([1.5], 5)


def test_no_cases_give_no_values() -> None:
    assert ndcg_at([], 5).shape == (0,)


@given(RANKS, CUTS)
def test_metrics_lie_between_zero_and_one(ranks: list[int], k: int) -> None:
    for values in (ndcg_at(ranks, k), hit_rate_at(ranks, k), reciprocal_rank(ranks)):
        assert ((values >= 0) & (values <= 1)).all()
        assert values.shape == (len(ranks),)


@given(RANKS, CUTS, CUTS)
def test_a_larger_cut_off_never_scores_less(ranks: list[int], k: int, more: int) -> None:
    assert (ndcg_at(ranks, k + more) >= ndcg_at(ranks, k)).all()
    assert (hit_rate_at(ranks, k + more) >= hit_rate_at(ranks, k)).all()


@given(RANKS, CUTS)
def test_a_better_rank_never_scores_less(ranks: list[int], k: int) -> None:
    in_order = ndcg_at(sorted(ranks), k)
    assert (np.diff(in_order) <= 0).all()


@given(RANKS)
def test_at_one_ndcg_is_the_hit_rate(ranks: list[int]) -> None:
    assert np.array_equal(ndcg_at(ranks, 1), hit_rate_at(ranks, 1))


@given(RANKS, CUTS)
def test_ndcg_never_exceeds_the_hit_rate(ranks: list[int], k: int) -> None:
    assert (ndcg_at(ranks, k) <= hit_rate_at(ranks, k)).all()


def test_distinct_scores_rank_highest_first() -> None:
    assert rank_with_ties([0.1, 7.0, 3.0], np.random.default_rng(0)).tolist() == [3, 1, 2]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.integers(0, 2**32))
def test_ranks_are_a_permutation_and_follow_the_scores(scores: list[int], seed: int) -> None:
    ranks = rank_with_ties(scores, np.random.default_rng(seed))
    assert sorted(ranks) == list(range(1, len(scores) + 1))
    assert (np.diff(np.asarray(scores)[np.argsort(ranks)]) <= 0).all()


def test_equal_scores_do_not_favour_the_item_listed_first() -> None:
    rng = np.random.default_rng(0)
    first = np.array([rank_with_ties([1, 1, 1, 1, 0], rng)[0] for _ in range(4000)])
    shares = np.bincount(first, minlength=6)[1:] / len(first)
    assert shares[:4] == pytest.approx([0.25] * 4, abs=0.03)
    assert shares[4] == 0


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="item 1"):
        rank_with_ties([0.0, float("nan")], np.random.default_rng(0))


def test_the_interval_is_that_of_the_normal_approximation_for_many_cases() -> None:
    values = np.random.default_rng(1).random(2000)
    low, high = bootstrap_interval(values, seed=3)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=half * 0.15
    )


def test_the_interval_covers_the_true_mean_about_95_times_of_100() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.exponential(1.0, 150), seed=seed, resamples=400)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 1000))
def test_the_interval_lies_within_the_values_and_is_seeded(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, seed=seed, resamples=50)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12
    assert (low, high) == bootstrap_interval(values, seed=seed, resamples=50)


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


def test_resampling_in_blocks_keeps_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("starec_ray.metrics._BLOCK", 7 * 50)
    assert bootstrap_interval(values) == whole


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_no_difference_has_p_one() -> None:
    found = paired_difference([0.2, 0.7, 0.1], [0.2, 0.7, 0.1])
    assert (found.difference, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_a_constant_difference_is_found_however_much_cases_vary() -> None:
    b = np.random.default_rng(2).random(100)
    found = paired_difference(b + 0.01, b, resamples=1999)
    assert found.difference == pytest.approx(0.01)
    assert found.interval == pytest.approx((0.01, 0.01))
    assert found.p == pytest.approx(0.001)  # 2 of 2,000: never 0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20))
def test_swapping_the_rankers_turns_the_sign(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    there = paired_difference(a, b, resamples=200)
    back = paired_difference(b, a, resamples=200)
    assert there.difference == -back.difference
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-12)
    assert there.p == back.p
    assert 0 < there.p <= 1


def test_p_is_below_five_percent_where_the_interval_leaves_zero_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        difference = rng.normal(0.2, 1.0, 80)
        found = paired_difference(difference, np.zeros(80))
        low, high = found.interval
        if not 0.049 < found.p < 0.051:
            assert (found.p < 0.05) == (low > 0 or high < 0)


def test_paired_values_need_the_same_cases() -> None:
    with pytest.raises(ValueError, match="same cases"):
        paired_difference([0.1], [0.1, 0.2])

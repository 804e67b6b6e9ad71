"""The order of training cases."""

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from starec_ray.rollouts.case_order import CaseOrder

CASES = [str(i) for i in range(7)]


def test_an_epoch_takes_every_case_once_and_the_next_is_shuffled_anew():
    order = CaseOrder(CASES, seed=1)
    first, second = order.cases(0, 7), order.cases(7, 7)
    assert sorted(first) == sorted(second) == CASES
    assert first != second


def test_another_seed_has_another_order():
    assert CaseOrder(CASES, seed=1).cases(0, 7) != CaseOrder(CASES, seed=2).cases(0, 7)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_order_does_not_depend_on_how_it_is_taken(sizes):
    order = CaseOrder(CASES, seed=2)
    ends = list(accumulate(sizes))
    starts = [0, *ends[:-1]]
    taken = [c for start, n in zip(starts, sizes, strict=True) for c in order.cases(start, n)]
    assert taken == CaseOrder(CASES, seed=2).cases(0, sum(sizes))


def test_an_order_goes_on_where_another_stopped():
    whole = CaseOrder(CASES, seed=3).cases(0, 20)
    assert CaseOrder(CASES, seed=3).cases(12, 8) == whole[12:]

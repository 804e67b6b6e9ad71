"""The order of training cases."""

from hypothesis import given
from hypothesis import strategies as st

from starec_ray.rollouts.case_order import CaseOrder

CASES = [str(i) for i in range(7)]


def test_an_epoch_takes_every_case_once_and_the_next_is_shuffled_anew():
    order = CaseOrder(CASES, seed=1)
    first, second = order.take(7), order.take(7)
    assert sorted(first) == sorted(second) == CASES
    assert first != second


@given(st.lists(st.integers(1, 5), max_size=6))
def test_the_order_does_not_depend_on_how_it_is_taken(sizes):
    order = CaseOrder(CASES, seed=2)
    taken = [case for size in sizes for case in order.take(size)]
    assert taken == CaseOrder(CASES, seed=2).take(sum(sizes))


def test_an_order_goes_on_where_another_stopped():
    whole = CaseOrder(CASES, seed=3).take(20)
    resumed = CaseOrder(CASES, seed=3)
    resumed.taken = 12
    assert resumed.take(8) == whole[12:]

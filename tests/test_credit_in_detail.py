"""What the other tests of these parts leave open."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from starec_ray.credit import candidate_advantages, grade_credits, rank_advantages
from starec_ray.rewards import REWARD_SHAPES
from tests.small_world import TARGET
from tests.test_credit import dataset, rollouts


def test_each_group_is_credited_for_the_target_of_its_own_case():
    shown = {"u/0": "abcd", "v/0": "dcba"}
    dataset = SimpleNamespace(
        case=lambda case_id: SimpleNamespace(
            candidates=[SimpleNamespace(item_id=item_id) for item_id in shown[case_id]]
        )
    )
    table = pa.table(
        {
            "case_id": ["u/0", "u/0", "v/0", "v/0"],
            "task": pa.array([0, 0, 1, 1], pa.int32()),
            "grades": pa.array([[4, 5, 5, 9], [4, 5, 5, 1]] * 2, pa.list_(pa.int8())),
        }
    )
    shape = REWARD_SHAPES["ndcg"]
    first, _, third, _ = candidate_advantages(table, ["d", "d", "d", "d"], dataset, shape)
    assert first[3] > 0 > third[3]  # the target itself; what stood before it
    _, _, third, _ = candidate_advantages(table, ["d", "d", "a", "a"], dataset, shape)
    assert third[3] > 0


def test_the_configuration_says_what_is_credited_and_what_a_rank_earns(dataset):
    table = rollouts([[0, 5, 5, 9], [0, 5, 5, 1]], [0, 0])
    scores = pa.table({"reward": [1.0, 0.5], "chosen": [TARGET] * 2})

    def first(credit: str, shape: str) -> np.ndarray:
        config = SimpleNamespace(credit_assignment=credit, reward_shape=shape)
        return rank_advantages(table, scores, dataset, config)[0]

    assert first("reply", "tiers") == pytest.approx([1.0], abs=1e-4)
    assert first("candidate", "tiers") == pytest.approx([0, 0, 0, 1 - (1 + 1 / 2) / 2])
    assert first("candidate", "reciprocal_rank") == pytest.approx([0, 0, 0, 1 - (1 + 1 / 3) / 2])


@pytest.mark.parametrize("size", [3, 6, 10])
@pytest.mark.parametrize("shape", REWARD_SHAPES.values())
def test_a_group_of_equal_grades_earns_exactly_nothing_where_ties_share_ranks(shape, size):
    for above in range(7):
        replies = np.tile([5] * above + [0] * (8 - above), (size, 1))
        assert not grade_credits(replies, 7, shape).any()

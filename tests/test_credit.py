"""What each grade of a reply added to its reward."""

import itertools
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starec_ray.credit import candidate_advantages, grade_credits, rank_advantages, reply_advantages
from starec_ray.data.dataset import Dataset
from starec_ray.errors import ConfigError
from starec_ray.rewards import REWARD_SHAPES, reciprocal_rank_rewards
from starec_ray.training.sequences import from_rollouts
from tests.small_world import TARGET, write_small_world

grades = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=4)
)


def mean_over_orders(grades: list[int], target: int, shape) -> float:
    """The reward, averaged over every order that equal grades could stand in."""
    orders = itertools.permutations(range(len(grades)))
    ranked = [sorted(order, key=lambda i: -grades[i]) for order in orders]
    return float(np.mean([shape([order.index(target) + 1])[0] for order in ranked]))


def test_credits_by_hand():
    # The target is the second of three. Reply 0 puts it first, reply 1 last.
    credits = grade_credits(np.array([[1, 9, 0], [5, 2, 3]]), 1, reciprocal_rank_rewards)
    # Its grade 2 would have been second in reply 0 too; 9 would have been first in reply 1.
    assert credits[:, 1] == pytest.approx([1 - (1 + 1) / 2 + 0.0, 1 / 3 - (1 / 3 + 1) / 2])
    # The others' grades: 1 or 5, 0 or 3 stay below 9; above 2 one of them less is a rank more.
    assert credits[0, [0, 2]] == pytest.approx([0.0, 0.0])
    assert credits[1, [0, 2]] == pytest.approx([1 / 3 - (1 / 3 + 1 / 2) / 2] * 2)


@pytest.mark.parametrize("shape", REWARD_SHAPES.values())
@given(group=grades, data=st.data())
def test_a_credit_is_the_reward_less_its_mean_over_the_grades_that_the_group_gave(
    shape, group, data
):
    target = data.draw(st.integers(0, len(group[0]) - 1))
    credits = grade_credits(np.array(group), target, shape)
    for reply, row in zip(group, credits, strict=True):
        for place in range(len(reply)):
            swapped = [
                mean_over_orders([*reply[:place], other[place], *reply[place + 1 :]], target, shape)
                for other in group
            ]
            expected = mean_over_orders(reply, target, shape) - np.mean(swapped)
            assert row[place] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [3, 7, 10, 12])
@pytest.mark.parametrize("shape", REWARD_SHAPES.values())
def test_a_group_of_equal_rewards_earns_exactly_nothing_whatever_its_size(shape, size):
    for place in range(20):
        replies = np.tile(np.roll(np.arange(20), place), (size, 1))
        assert not grade_credits(replies, 0, shape).any()


@pytest.mark.parametrize("size", [3, 6, 10])
@pytest.mark.parametrize("shape", REWARD_SHAPES.values())
def test_a_group_of_equal_grades_earns_exactly_nothing_where_ties_share_ranks(shape, size):
    for above in range(7):
        replies = np.tile([5] * above + [0] * (8 - above), (size, 1))
        assert not grade_credits(replies, 7, shape).any()


@given(group=grades)
def test_a_grade_that_all_replies_gave_alike_earns_nothing(group):
    table = np.array(group)
    alike = (table == table[0]).all(axis=0)
    assert not grade_credits(table, 0, REWARD_SHAPES["ndcg"])[:, alike].any()


@pytest.fixture
def dataset(tmp_path):
    return Dataset.load(write_small_world(tmp_path / "world"))


def rollouts(grades: list[list[int]], tasks: list[int]) -> pa.Table:
    """Of case u0/0: a word token and a grade token for each candidate, then the end."""
    reply_ids = [[t for grade in row for t in (50, grade)] + [2] for row in grades]
    choices = [[[50], list(range(10))] * len(row) + [[2]] for row in grades]
    return pa.table(
        {
            "case_id": ["u0/0"] * len(grades),
            "task": pa.array(tasks, pa.int32()),
            "grades": pa.array(grades, pa.list_(pa.int8())),
            "prompt_ids": [[1]] * len(grades),
            "reply_ids": reply_ids,
            "logprobs": [[0.0] * len(row) for row in reply_ids],
            "choices": choices,
        }
    )


def test_groups_are_compared_among_themselves(dataset):
    table = rollouts([[0, 5, 5, 9], [0, 5, 5, 1], [7, 7, 7, 7], [7, 7, 7, 7]], [0, 0, 1, 1])
    advantages = candidate_advantages(table, [TARGET] * 4, dataset, REWARD_SHAPES["ndcg"])
    assert not np.any(advantages[2:])
    target = int(TARGET)
    assert advantages[0][target] > 0 > advantages[1][target]


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


def test_a_grade_s_advantage_stands_at_its_token(dataset):
    table = rollouts([[0, 5, 5, 9]], [0])
    given = np.array([1.0, 2.0, 3.0, 4.0])
    (by_token,) = from_rollouts("rank", table, [given])["advantages"].to_pylist()
    assert by_token == [0, 1, 0, 2, 0, 3, 0, 4, 0]
    whole = reply_advantages([1.0], [0])
    assert from_rollouts("rank", table, whole)["advantages"].to_pylist() == [[0.0] * 9]


def test_grades_that_are_no_tokens_are_told(dataset):
    table = rollouts([[0, 5, 5, 9]], [0])
    with pytest.raises(ConfigError, match="chose 4 tokens and has 3 graded candidates"):
        from_rollouts("rank", table, [np.ones(3)])

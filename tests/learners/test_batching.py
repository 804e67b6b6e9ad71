from collections import defaultdict
from itertools import combinations

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.attention import attention_mask
from learners.batching import MicroBatch, batch_groups, plan, share_out
from learners.families import LEAST_OPENING
from learners.groups import COMPONENTS, read_groups, split
from starec_ray.errors import DataError
from tests.learners.samples import make_sequences

groups = st.lists(
    st.tuples(
        st.sampled_from(COMPONENTS),
        st.integers(1, 30),
        st.lists(st.integers(1, 20), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=12,
)
budgets = st.integers(8, 120)
learners = st.integers(1, 4)
openings = st.sampled_from([0, LEAST_OPENING - 1, LEAST_OPENING, 25])


def numbered(shape: list[tuple[str, int, list[int]]], alike: int = 0) -> pa.Table:
    """Sequences whose advantages are their row number, by which the tests know them again."""
    table = make_sequences(shape, alike=alike)
    place = table.schema.get_field_index("advantages")
    rows = [[i] * len(reply) for i, reply in enumerate(table["reply_ids"].to_pylist())]
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(rows, field.type))


def all_micro_batches(table: pa.Table, budget: int, world_size: int) -> list[list[MicroBatch]]:
    return [
        list(plan(table, micro_batch_tokens=budget, rank=r, world_size=world_size).micro_batches)
        for r in range(world_size)
    ]


@given(groups, budgets, learners, openings)
def test_every_reply_token_is_learned_once_with_its_own_logprob(shape, budget, world_size, alike):
    table = numbered(shape, alike)
    seen = defaultdict(list)
    for micro_batches in all_micro_batches(table, budget, world_size):
        for m in micro_batches:
            for row, token, logprob, component in zip(
                m.advantages, m.targets, m.logprobs, m.components, strict=True
            ):
                seen[int(row)].append((token, logprob, COMPONENTS[component]))
    assert sorted(seen) == list(range(table.num_rows))
    for i, row in enumerate(table.to_pylist()):
        tokens, logprobs, components = zip(*seen[i], strict=True)
        assert list(tokens) == row["reply_ids"]
        assert list(logprobs) == pytest.approx(row["logprobs"] or [0.0] * len(tokens))
        assert set(components) == {row["component"]}


@given(groups, budgets, openings)
@settings(max_examples=60)
def test_a_reply_token_is_predicted_from_its_prompt_and_the_reply_before_it_alone(
    shape, budget, alike
):
    table = numbered(shape, alike)
    rows = table.to_pylist()
    at = defaultdict(int)
    for m in plan(table, micro_batch_tokens=budget).micro_batches:
        visible = attention_mask(m.spans, torch.from_numpy(m.positions), None)[0, 0].numpy()
        for row, predictor in zip(m.advantages.astype(int), m.predictors, strict=True):
            context = m.token_ids[visible[predictor]].tolist()
            expected = rows[row]["prompt_ids"] + rows[row]["reply_ids"][: at[row]]
            assert context == expected
            assert m.positions[visible[predictor]].tolist() == list(range(len(expected)))
            at[row] += 1


@given(groups, budgets, learners, openings)
def test_a_micro_batch_keeps_the_budget_unless_one_reply_alone_is_wider(
    shape, budget, world_size, alike
):
    for micro_batches in all_micro_batches(numbered(shape, alike), budget, world_size):
        for m in micro_batches:
            if m.token_ids.size > budget:
                [family] = m.spans
                assert len(family.groups) == 1 and len(family.groups[0].replies) <= 1


@given(groups, budgets, learners)
def test_all_learners_run_as_many_micro_batches(shape, budget, world_size):
    shares = all_micro_batches(numbered(shape), budget, world_size)
    assert len({len(share) for share in shares}) == 1


@given(groups, budgets, learners)
def test_loads_differ_by_no_more_than_the_widest_group(shape, budget, world_size):
    parts = [part for group in read_groups(numbered(shape)) for part in split(group, budget)]
    loads = [sum(part.width for part in share) for share in share_out(parts, world_size)]
    assert max(loads) - min(loads) <= max(part.width for part in parts)
    assert sum(loads) == sum(part.width for part in parts)


@given(groups, budgets)
def test_no_two_micro_batches_would_fit_into_one(shape, budget):
    parts = [part for group in read_groups(numbered(shape)) for part in split(group, budget)]
    widths = [sum(part.width for part in batch) for batch in batch_groups(parts, budget)]
    assert all(one + other > budget for one, other in combinations(widths, 2))


def test_a_group_pays_for_its_prompt_once():
    (micro_batch,) = plan(
        make_sequences([("rank", 100, [10] * 8)]), micro_batch_tokens=4096
    ).micro_batches
    assert micro_batch.token_ids.shape == (100 + 8 * 9,)


def test_prompts_that_begin_alike_have_their_opening_once():
    table = make_sequences([("rank", 30, [5, 5])] * 3, alike=LEAST_OPENING)
    (micro_batch,) = plan(table, micro_batch_tokens=4096).micro_batches
    assert micro_batch.token_ids.size == LEAST_OPENING + 3 * (30 - LEAST_OPENING + 4 + 4)


def test_a_group_wider_than_the_budget_is_split_with_the_prompt_in_each_part():
    micro_batches = plan(
        make_sequences([("rank", 50, [11] * 6)]), micro_batch_tokens=80
    ).micro_batches
    assert [m.token_ids.shape for m in micro_batches] == [(80,), (80,)]


def test_groups_of_two_components_may_have_the_same_number():
    table = make_sequences([("rank", 5, [3]), ("reflect", 7, [4])])
    same = table.set_column(1, "group", pa.array([0, 0], pa.int64()))
    assert plan(same, micro_batch_tokens=100).component_tokens == {
        "anchor": 0,
        "rank": 3,
        "reflect": 4,
    }


def test_a_learner_without_work_gets_an_empty_micro_batch():
    share = plan(
        make_sequences([("rank", 5, [3])]), micro_batch_tokens=100, rank=1, world_size=2
    ).micro_batches
    assert [len(m.targets) for m in share] == [0]
    assert share[0].token_ids.shape == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": [9, 9]}, "another prompt"),
        ({"reply_ids": []}, "empty prompt or reply"),
        ({"logprobs": None}, "sampled log-probs"),
        ({"component": "critique"}, "Unknown component"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_named(change, message):
    table = make_sequences([("rank", 5, [3, 3])])
    rows = table.to_pylist()
    rows[1] |= change
    with pytest.raises(DataError, match=message):
        plan(pa.Table.from_pylist(rows, schema=table.schema), micro_batch_tokens=100)


def test_an_empty_table_is_an_error():
    with pytest.raises(DataError, match="no rows"):
        plan(make_sequences([]), micro_batch_tokens=100)

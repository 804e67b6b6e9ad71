from collections import defaultdict
from itertools import combinations, combinations_with_replacement, product

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.attention import attention_mask
from learners.batching import MicroBatch, batch_groups, plan, share_out
from learners.families import LEAST_OPENING
from learners.groups import COMPONENTS, Group, Reply, read_groups, split
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
    rows = [[i] * len(reply) for i, reply in enumerate(table["reply_ids"].to_pylist())]
    return replaced(table, advantages=rows)


def replaced(table: pa.Table, **columns: list) -> pa.Table:
    """The table with other values in these columns."""
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table


def constrained(table: pa.Table, seed: int) -> pa.Table:
    """The same replies, some free, some chosen among one to three tokens at a time; advantages tell
    a token's row and place."""
    rng = np.random.default_rng(seed)
    choices, advantages = [], []
    for row, reply in enumerate(table["reply_ids"].to_pylist()):
        each = [sorted({t, *rng.integers(3, 9, rng.integers(3)).tolist()}) for t in reply]
        choices.append(each if rng.integers(4) else None)
        advantages.append([32.0 * row + place for place in range(len(reply))])
    return replaced(table, choices=choices, advantages=advantages)


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


@given(groups, budgets, learners, st.integers(0, 99))
@settings(max_examples=25)
def test_every_token_with_another_choice_is_learned_once_and_counted_over_all_learners(
    shape, budget, world_size, seed
):
    table = constrained(make_sequences(shape), seed)
    expected, counts = {}, dict.fromkeys(COMPONENTS, 0)
    for row in table.to_pylist():
        choices = row["choices"] or [[]] * len(row["reply_ids"])
        for i, (token, each) in enumerate(zip(row["reply_ids"], choices, strict=True)):
            if len(each) != 1:
                logprob = row["logprobs"][i] if row["logprobs"] else 0.0
                expected[row["advantages"][i]] = (token, row["component"], logprob, each)
                counts[row["component"]] += 1
    seen = []
    for rank in range(world_size):
        share = plan(table, micro_batch_tokens=budget, rank=rank, world_size=world_size)
        assert share.component_tokens == counts
        for m in share.micro_batches:
            chosen_from = [m.choice_ids[mask].tolist() for mask in m.choice_mask]
            names = [COMPONENTS[component] for component in m.components]
            tokens = zip(m.targets, names, m.logprobs, chosen_from, strict=True)
            seen += zip(m.advantages.tolist(), tokens, strict=True)
    assert len(seen) == len(expected)
    assert dict(seen) == expected


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


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_largest_load_is_at_most_a_third_above_the_best(world_size):
    """Graham's bound (1969), 4/3 - 1/(3m) for m learners, against all ways to share out."""
    reply = Reply(np.zeros(1, np.int32), *np.zeros((2, 1), np.float32), None)
    for widths in combinations_with_replacement(range(1, 5), 5):
        parts = [Group(1, np.zeros(width, np.int32), (reply,)) for width in widths]
        loads = [sum(part.width for part in share) for share in share_out(parts, world_size)]
        ways = product(range(world_size), repeat=len(widths))
        best = min(np.bincount(places, widths).max() for places in ways)
        assert 3 * world_size * max(loads) <= (4 * world_size - 1) * best, widths


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


@pytest.mark.parametrize("rank", [0, 1])
def test_counts_are_of_all_learners_and_take_a_prompt_for_each_part_of_a_group(rank):
    table = make_sequences([("rank", 50, [11] * 6), ("anchor", 20, [5]), ("reflect", 30, [1, 8])])
    share = plan(table, micro_batch_tokens=80, rank=rank, world_size=2)
    assert share.tokens == 2 * (50 + 3 * 10) + (20 + 4) + (30 + 0 + 7)
    assert share.component_tokens == {"anchor": 5, "rank": 66, "reflect": 9}


def test_tokens_without_another_choice_are_not_counted():
    table = make_sequences([("rank", 5, [4, 2]), ("anchor", 6, [3]), ("reflect", 7, [2])])
    choices: list[list[list[int]] | None] = [
        [[t, 1] if i in learned else [t] for i, t in enumerate(reply)]
        for reply, learned in zip(
            table["reply_ids"].to_pylist(), ({1, 3}, set(), {0}, set()), strict=True
        )
    ]
    choices[-1] = None
    counted = plan(replaced(table, choices=choices), micro_batch_tokens=100).component_tokens
    assert counted == {"anchor": 1, "rank": 2, "reflect": 2}


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
        ({"advantages": [1.0] * 2}, "3 reply tokens and 2 advantages"),
        ({"advantages": [1.0] * 4}, "3 reply tokens and 4 advantages"),
        ({"choices": [[1, 2]] * 3}, "a token that isn't among its choices"),
        ({"choices": [list(range(128))] * 2}, "a token that isn't among its choices"),
        ({"component": "critique"}, "Unknown component"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_named(change, message):
    table = make_sequences([("rank", 5, [3, 3])])
    rows = table.to_pylist()
    rows[1] |= change
    with pytest.raises(DataError, match=message):
        plan(pa.Table.from_pylist(rows, schema=table.schema), micro_batch_tokens=100)


def test_a_row_without_logprobs_does_not_take_those_of_the_next():
    table = make_sequences([("rank", 5, [1, 1]), ("anchor", 5, [1]), ("rank", 5, [2])])
    (micro_batch,) = plan(table, micro_batch_tokens=100).micro_batches
    first, second, of_trace, last = table["logprobs"].to_pylist()
    assert of_trace is None
    assert sorted(micro_batch.logprobs) == sorted([*first, *second, 0.0, *last])
    without = replaced(table, logprobs=[None, second, None, last])
    with pytest.raises(DataError, match=r"Sequence 0 .* 1 reply tokens and 0 sampled log-probs"):
        plan(without, micro_batch_tokens=100)


def test_an_empty_table_is_an_error():
    with pytest.raises(DataError, match="no rows"):
        plan(make_sequences([]), micro_batch_tokens=100)

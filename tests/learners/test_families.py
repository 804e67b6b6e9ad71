"""Prompts that begin alike, put together so that the fewest tokens are left."""

from itertools import chain, combinations, pairwise, takewhile
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learners import families as module
from learners.families import LEAST_OPENING, Family, families
from learners.groups import Group, Reply

RANK, REFLECT = [1] * 20, [2] * 30
prompts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=6)


def group(prompt: list[int]) -> Group:
    none = np.zeros(1, np.float32)
    return Group(1, np.array(prompt, np.int32), (Reply(np.array([7], np.int32), none, none, None),))


def found(*prompts: list[int]) -> list[tuple[int, list[list[int]]]]:
    return [
        (family.opening, [each.prompt_ids.tolist() for each in family.groups])
        for family in families([group(prompt) for prompt in prompts])
    ]


def test_prompts_of_two_tasks_make_two_families():
    rank, reflect = [[*RANK, 5], [*RANK, 6, 7]], [[*REFLECT, 5, 5], [*REFLECT, 6]]
    assert found(reflect[1], rank[0], reflect[0], rank[1]) == [(20, rank), (30, reflect)]


def test_prompts_that_are_all_the_same_keep_their_last_token_each():
    assert found([*RANK, 5], [*RANK, 5]) == [(20, [[*RANK, 5]] * 2)]


def test_an_opening_too_short_to_pay_is_none():
    short = [1] * (LEAST_OPENING - 1)
    assert [opening for opening, _ in found([*short, 5], [*short, 6])] == [0, 0]


@given(prompts)
@settings(max_examples=200)
def test_no_other_runs_of_the_sorted_prompts_take_fewer_tokens(prompts):
    groups = [group(prompt) for prompt in prompts]
    with patch.object(module, "LEAST_OPENING", 1):
        made = families(groups)
    assert sorted(map(id, groups)) == sorted(id(each) for family in made for each in family.groups)
    for family in made:
        openings = {tuple(each.prompt_ids[: family.opening]) for each in family.groups}
        assert len(openings) == 1
        assert all(len(each.prompt_ids) > family.opening for each in family.groups)
    assert sum(width(family) for family in made) == fewest_tokens(sorted(prompts))


def width(family: Family) -> int:
    prompts = sum(len(each.prompt_ids) for each in family.groups)
    return prompts - family.opening * (len(family.groups) - 1)


def fewest_tokens(prompts: list[list[int]]) -> int:
    """By trying every way to cut them into runs."""
    places = range(1, len(prompts))
    cuts = chain.from_iterable(combinations(places, n) for n in range(len(prompts)))
    return min(
        sum(tokens(prompts[i:j]) for i, j in pairwise([0, *cut, len(prompts)])) for cut in cuts
    )


def tokens(family: list[list[int]]) -> int:
    columns = zip(*(prompt[:-1] for prompt in family), strict=False)
    opening = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    return sum(map(len, family)) - opening * (len(family) - 1)

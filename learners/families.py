"""Groups whose prompts begin alike, as those of one task do: what they begin with is put once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from learners.groups import Group

# Tokens. Below, attention's further calls cost more than the tokens saved: see the shapes with and
# without an opening of benchmarks/attention.py.
LEAST_OPENING = 16


@dataclass(frozen=True, slots=True)
class Family:
    """Groups whose prompts have their first `opening` tokens in common, and each one more."""

    opening: int  # 0 for a group alone
    groups: tuple[Group, ...]


def families(groups: Sequence[Group]) -> list[Family]:
    """The groups, sorted by their prompts, in the runs that take the fewest input tokens.

    By dynamic programming over where a run ends.
    """
    ordered = sorted(groups, key=lambda group: group.prompt_ids.tolist())
    alike = [_alike(one.prompt_ids, other.prompt_ids) for one, other in pairwise(ordered)]
    # Of the first groups, as many as the index: the tokens saved, the last family's start and
    # opening.
    best = [(0, 0, 0)]
    for end in range(1, len(ordered) + 1):
        found = (best[-1][0], end - 1, 0)
        opening = len(ordered[end - 1].prompt_ids)
        for start in range(end - 2, -1, -1):
            opening = min(opening, alike[start])
            if opening < LEAST_OPENING:
                break
            saved = best[start][0] + opening * (end - 1 - start)
            if saved > found[0]:
                found = (saved, start, opening)
        best.append(found)
    made: list[Family] = []
    end = len(ordered)
    while end:
        _, start, opening = best[end]
        made.append(Family(opening, tuple(ordered[start:end])))
        end = start
    return made[::-1]


def _alike(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """How many first tokens two prompts have in common; the last, which predicts, stays theirs."""
    length = min(len(one), len(other)) - 1
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length

"""Which part of a reply earned its reward: advantages of whole replies, or of single grades."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from starec_ray.data.dataset import Dataset
from starec_ray.rewards import EPSILON, REWARD_SHAPES, Rewards, group_advantages

CREDIT_ASSIGNMENTS = ("reply", "candidate")
Shape = Callable[[ArrayLike], Rewards]  # of `rewards.REWARD_SHAPES`


def rank_advantages(
    rankings: pa.Table, scores: pa.Table, dataset: Dataset, config: Any
) -> list[Rewards]:
    """As `config.credit_assignment` says, of rankings (ROLLOUTS) and their SCORES."""
    if config.credit_assignment == "reply":
        return reply_advantages(
            scores.column("reward").to_numpy(), rankings.column("task").to_numpy()
        )
    shape = REWARD_SHAPES[config.reward_shape]
    return candidate_advantages(rankings, scores.column("chosen").to_pylist(), dataset, shape)


def reply_advantages(rewards: ArrayLike, groups: ArrayLike) -> list[Rewards]:
    """GRPO's: one advantage for all tokens of a reply, float32 [1] for each rollout."""
    return list(group_advantages(rewards, groups)[:, None])


def candidate_advantages(
    rankings: pa.Table, chosen: Sequence[str], dataset: Dataset, shape: Shape
) -> list[Rewards]:
    """An advantage for each candidate's grade: what it added to the reward of its reply.

    The baseline of a grade is the mean reward of the same reply with that candidate's grade put
    in the place of it that each rollout of the group gave: GRPO's comparison within a group
    (arXiv 2402.03300), made for one action at a time as in COMA (arXiv 1705.08926, eq. 4). A
    grade that could have been any other without moving the target earns nothing, so that the
    noise of the other grades is left out. They stay in units of the reward: scaled to one size,
    the few that are left of a policy that has settled would be blown up, and `kl_coeff` would
    weigh less and less beside them.

    Args:
        rankings: ROLLOUTS [rows], with their grades; rollouts of one `task` are a group.
        chosen: the item id of the target of each row.
        shape: the reward of a rank.

    Returns:
        For each row float32 [candidates], in the order listed.
    """
    grades = [np.array(row) for row in rankings.column("grades").to_pylist()]
    case_ids = rankings.column("case_id").to_pylist()
    tasks = rankings.column("task").to_numpy()
    credits = [np.zeros(0, np.float32)] * len(grades)
    for task in np.unique(tasks):
        rows = np.flatnonzero(tasks == task)
        candidates = dataset.case(case_ids[rows[0]]).candidates
        target = [item.item_id for item in candidates].index(chosen[rows[0]])
        group = grade_credits(np.stack([grades[row] for row in rows]), target, shape)
        for row, credit in zip(rows, group, strict=True):
            credits[row] = credit.astype(np.float32)
    return credits


def grade_credits(grades_GN: NDArray, target: int, shape: Shape) -> NDArray[np.float64]:
    """Reward of each reply less its mean with one grade replaced: float64 [G, N].

    Args:
        grades_GN: the grades of a group's G replies, int [G, N candidates].
        target: index of the target among the candidates.
        shape: the reward of a rank; equal grades share the mean over the ranks they take up,
            for their order in the list says nothing.
    """
    G, N = grades_GN.shape
    # [g, n, h]: the grades of reply g, but candidate n's as reply h gave it.
    swapped_GNHN = np.broadcast_to(grades_GN[:, None, None], (G, N, G, N)).copy()
    one_N = np.arange(N)
    swapped_GNHN[:, one_N, :, one_N] = grades_GN.T[:, None]
    summed = np.cumsum([0.0, *shape(np.arange(1, N + 1))])

    def reward(grades: NDArray) -> NDArray:
        own = grades[..., target, None]
        above, level = (grades > own).sum(-1), (grades == own).sum(-1)
        return (summed[above + level] - summed[above]) / level

    credit = reward(grades_GN)[:, None] - reward(swapped_GNHN).mean(2)
    return np.where(abs(credit) > EPSILON, credit, 0.0)  # a mean of equals may be off by a bit

"""Slow thinking in training: who reflects on what, and what a new summary is worth."""

import numpy as np
import pyarrow as pa

from starec_ray.agent.tasks import RankTask, ReflectTask
from starec_ray.data.dataset import Dataset
from starec_ray.rewards import MALFORMED


def reflect_tasks(
    rank_tasks: list[RankTask],
    ranked: pa.Table,
    scores: pa.Table,
    dataset: Dataset,
    share: float,
    iteration: int,
    seed: int,
) -> list[ReflectTask]:
    """A reflection for a seeded `share` of the ranking tasks, those with a later case. What the
    share leaves over in one `iteration` (0 …) is made up in a later one.

    Each reflects on the first rollout of its group: one honest sample of what the agent
    predicts, known without a look at the rewards.

    Args:
        ranked: ROLLOUTS [rows] of `rank_tasks`; their column `task` counts these.
        scores: SCORES [rows], beside them.
        share: 0 … 1.
    """
    able = [
        number
        for number, task in enumerate(rank_tasks)
        if dataset.next_case_id(task.case_id) is not None
    ]
    before, after = (round(share * len(rank_tasks) * i) for i in (iteration, iteration + 1))
    size = min(len(able), after - before)
    chosen = sorted(np.random.default_rng(seed).choice(len(able), size, replace=False))
    first = np.flatnonzero(ranked.column("rollout").to_numpy() == 0)
    row_of = dict(
        zip(ranked.column("task").to_numpy()[first].tolist(), first.tolist(), strict=True)
    )
    tasks = []
    for place in chosen:
        task, row = rank_tasks[able[place]], row_of[able[place]]
        predicted = tuple(ranked.column("ranking")[row].as_py())
        real = scores.column("chosen")[row].as_py()
        tasks.append(ReflectTask(task.case_id, task.summary, predicted, real))
    return tasks


def follow_up_tasks(reflected: pa.Table, dataset: Dataset) -> list[RankTask]:
    """The ranking that each new summary makes possible: the same user's next case."""
    return [
        RankTask(str(dataset.next_case_id(case_id)), summary)
        for case_id, summary in zip(
            reflected.column("case_id").to_pylist(),
            reflected.column("summary").to_pylist(),
            strict=True,
        )
    ]


def reflection_rewards(reflected: pa.Table, follow_scores: pa.Table) -> np.ndarray:
    """The follow-up's reward, float32 [rows]; that of a malformed ranking for a reflection that
    left no summary.

    Args:
        reflected: ROLLOUTS [rows], of reflections.
        follow_scores: SCORES [rows], of the ranking made with each one's summary.
    """
    rewards = follow_scores.column("reward").to_numpy().astype(np.float32)
    malformed = reflected.column("malformed").to_numpy(zero_copy_only=False)
    return np.where(malformed, np.float32(MALFORMED), rewards)


def revealed(tasks: list[ReflectTask], reflected: pa.Table) -> pa.Table:
    """What each reflection was told: columns chosen, and target_rank, which is null throughout."""
    chosen = [tasks[number].chosen for number in reflected.column("task").to_pylist()]
    return pa.table(
        {"target_rank": pa.nulls(len(chosen), pa.int16()), "chosen": pa.array(chosen, pa.string())}
    )

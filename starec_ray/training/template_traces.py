"""Traces that the template teacher writes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask, ReflectTask, Task
from starec_ray.agent.teacher import TemplateTeacher
from starec_ray.schemas import TRACES

# Scores rankings (columns case_id, ranking, malformed) and so reveals the feedback.
Score = Callable[[pa.Table], pa.Table]


def write_template_traces(
    agent: Agent,
    score: Score,
    *,
    num_traces: int,
    reflect_share: float,
    popularity_weight: float,
    seed: int,
) -> pa.Table:
    """Traces of the template teacher (`schemas.TRACES`) for training users, shuffled.

    A reflection follows the teacher's own ranking of the case, after that was scored.
    """
    dataset = agent.dataset
    teacher = TemplateTeacher(dataset, agent.writer.attributes, popularity_weight)
    rng = np.random.default_rng(seed)
    case_ids = [str(c) for c in rng.permutation(np.array(dataset.case_ids("train"), dtype=object))]
    num_reflect = round(num_traces * reflect_share)
    rank_tasks = [
        RankTask(case_id, agent.initial_summary(case_id))
        for case_id in case_ids[: max(num_traces - num_reflect, num_reflect)]
    ]
    answers = [teacher.rank(task) for task in rank_tasks]
    rankings = pa.table(
        {
            "case_id": [task.case_id for task in rank_tasks],
            "ranking": pa.array([a["ranking"] for a in answers], pa.list_(pa.string())),
            "malformed": [False] * len(answers),
        }
    )
    rows = [
        trace_columns("rank", task, answer, teacher.name)
        for task, answer in zip(rank_tasks, answers, strict=True)
    ][: num_traces - num_reflect]
    if num_reflect:
        chosen = score(rankings.slice(0, num_reflect)).column("chosen").to_pylist()
        for task, answer, choice in zip(rank_tasks, answers, chosen, strict=False):
            predicted = tuple(str(item_id) for item_id in answer["ranking"])
            reflect = ReflectTask(task.case_id, task.summary, predicted, choice)
            rows.append(trace_columns("reflect", reflect, teacher.reflect(reflect), teacher.name))
    order = rng.permutation(len(rows))
    return pa.Table.from_pylist([rows[i] for i in order], schema=TRACES)


def trace_columns(kind: str, task: Task, answer: dict, teacher: str) -> dict[str, Any]:
    """A row of `schemas.TRACES`: the task, and a teacher's answer (its own columns)."""
    return {
        "trace_id": f"{teacher}/{kind}/{task.case_id}",
        "kind": kind,
        "case_id": task.case_id,
        "teacher": teacher,
        "summary_before": task.summary,
        "predicted": task.predicted if isinstance(task, ReflectTask) else None,
        "chosen": task.chosen if isinstance(task, ReflectTask) else None,
        "rationale": answer["rationale"],
        "ranking": answer.get("ranking"),
        "grades": answer.get("grades"),
        "summary": answer.get("summary"),
    }

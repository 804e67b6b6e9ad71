"""What the other tests of these parts leave open."""

import numpy as np
import pyarrow as pa
import pytest

from starec_ray.agent.tasks import RankTask
from starec_ray.credit import reply_advantages
from starec_ray.rollouts.reflection import reflect_tasks
from starec_ray.rollouts.report import rollout_report
from tests.rollouts.test_queue import Sampler, Version, queue
from tests.rollouts.test_reflection import GROUP, ranked_and_scored, tasks_of, world


def test_another_seed_chooses_others_to_reflect(world):
    tasks = tasks_of(world, 0)
    chosen = {
        tuple(
            task.case_id
            for task in reflect_tasks(tasks, *ranked_and_scored(tasks), world, 0.5, 0, seed)
        )
        for seed in range(5)
    }
    assert len(chosen) > 1


def test_a_reflection_is_on_the_ranking_and_the_choice_of_its_own_case(world):
    tasks = [RankTask(case_id, f"of {case_id}") for case_id in ("u0/1", "u0/0", "u1/1", "u1/0")]
    ranked, _ = ranked_and_scored(tasks)
    items = [str(task) for task in range(len(tasks)) for _ in range(GROUP)]
    ranked = ranked.set_column(3, "ranking", [[item] for item in items])
    reflecting = reflect_tasks(tasks, ranked, pa.table({"chosen": items}), world, 0.5, 0, seed=1)
    told = [(task.case_id, task.summary, task.predicted, task.chosen) for task in reflecting]
    assert told == [("u0/0", "of u0/0", ("1",), "1"), ("u1/0", "of u1/0", ("3",), "3")]


def test_weights_that_were_offered_before_going_back_are_not_loaded():
    sampler = Sampler()
    waiting = queue(sampler, max_staleness=1)
    waiting.settle()
    waiting.offer(Version(1))
    waiting.forget()
    assert sampler.version == 0

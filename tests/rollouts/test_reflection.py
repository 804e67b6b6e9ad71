"""Slow thinking in training: who reflects, on what, and what it earns."""

import numpy as np
import pyarrow as pa
import pytest

from starec_ray.agent.tasks import RankTask
from starec_ray.credit import reply_advantages
from starec_ray.rollouts.reflection import (
    follow_up_tasks,
    reflect_tasks,
    reflection_rewards,
    revealed,
)
from starec_ray.rollouts.report import rollout_report
from tests.small_world import dataset

USERS = 6  # of the small world that train: u0, u1, u4, u5, u8, u9
GROUP = 2


@pytest.fixture(scope="module")
def world(small_world):
    return dataset(small_world)


def ranked_and_scored(tasks: list[RankTask]) -> tuple[pa.Table, pa.Table]:
    """Two rollouts a task: the first begins with item 0, the second with item 3."""
    rows = [(task, rollout) for task in range(len(tasks)) for rollout in range(GROUP)]
    rankings = [["0", "1", "2", "3"], ["3", "2", "1", "0"]]
    ranked = pa.table(
        {
            "case_id": [tasks[task].case_id for task, _ in rows],
            "task": pa.array([task for task, _ in rows], pa.int32()),
            "rollout": pa.array([rollout for _, rollout in rows], pa.int32()),
            "ranking": [rankings[rollout] for _, rollout in rows],
        }
    )
    return ranked, pa.table({"chosen": ["3"] * len(rows)})


def tasks_of(world, round_: int) -> list[RankTask]:
    return [RankTask(case_id, "before") for case_id in world.case_ids("train", round_)[:USERS]]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_a_seeded_share_reflects_on_its_first_rollout_and_the_real_choice(world, share, count):
    tasks = tasks_of(world, 0)
    ranked, scores = ranked_and_scored(tasks)
    reflecting = reflect_tasks(tasks, ranked, scores, world, share, iteration=0, seed=1)
    assert len({task.case_id for task in reflecting}) == len(reflecting) == count
    assert all(task.predicted == ("0", "1", "2", "3") for task in reflecting)
    assert all((task.chosen, task.summary) == ("3", "before") for task in reflecting)
    assert reflecting == reflect_tasks(tasks, ranked, scores, world, share, iteration=0, seed=1)


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


def test_a_share_of_less_than_one_task_an_iteration_is_kept_over_the_iterations(world):
    tasks = tasks_of(world, 0)
    ranked, scores = ranked_and_scored(tasks)
    counts = [
        len(reflect_tasks(tasks, ranked, scores, world, 0.05, number, seed=1))
        for number in range(20)
    ]
    assert max(counts) == 1 and sum(counts) == round(0.05 * len(tasks) * 20)


def test_a_last_case_has_nothing_to_follow_up_with(world):
    tasks = tasks_of(world, 1)
    assert reflect_tasks(tasks, *ranked_and_scored(tasks), world, 1.0, iteration=0, seed=1) == []


def test_a_summary_is_used_in_the_next_case_and_earns_its_reward(world):
    reflected = pa.table(
        {
            "case_id": ["u0/0", "u0/0"],
            "task": pa.array([0, 0], pa.int32()),
            "summary": ["Likes Delta.", ""],
            "malformed": [False, True],
        }
    )
    follow_ups = follow_up_tasks(reflected, world)
    assert follow_ups == [RankTask("u0/1", "Likes Delta."), RankTask("u0/1", "")]
    rewards = reflection_rewards(reflected, pa.table({"reward": pa.array([0.5, 0.9], "float32")}))
    assert rewards.tolist() == [0.5, -1.0] and rewards.dtype == np.float32
    told = revealed(
        reflect_tasks(
            tasks_of(world, 0), *ranked_and_scored(tasks_of(world, 0)), world, 1.0, 0, seed=1
        ),
        reflected,
    )
    assert told["chosen"].to_pylist() == ["3", "3"] and told["target_rank"].null_count == 2


def test_the_report_counts_what_was_sampled():
    rollouts = pa.table(
        {
            "task": pa.array([0, 0, 1, 1], pa.int32()),
            "malformed": [False, True, False, False],
            "missing": [0, 4, 0, 0],
            "repeated": [0, 0, 0, 2],
            "invented": [0, 0, 3, 0],
            "history_shed": [0, 0, 0, 0],
            "summary_cut": [False, True, False, False],
            "prompt_ids": [[1, 2, 3]] * 4,
            "reply_ids": [[1], [1, 2], [1, 2, 3], [1, 2]],
            "finish_reason": ["stop", "length", "stop", "stop"],
        }
    )
    rewards = np.array([1.0, -1.0, 0.5, 0.5])
    scored = {"rewards": rewards, "advantages": reply_advantages(rewards, [0, 0, 1, 1])}
    report = rollout_report("rank", rollouts, **scored, target_ranks=np.array([1, 1, 2, 2]))
    assert report["rank/reward"] == 0.25
    spread = np.sqrt((0.75**2 + 1.25**2 + 2 * 0.25**2) / 4)
    assert report["rank/reward_std"] == pytest.approx(spread)
    assert report["rank/invented"] == 0.75
    assert (report["rank/malformed"], report["rank/cut_off"]) == (0.25, 0.25)
    assert (report["rank/missing"], report["rank/repeated"]) == (1.0, 0.5)
    assert (report["rank/summary_cut"], report["rank/history_shed"]) == (0.25, 0.0)
    assert (report["rank/prompt_tokens"], report["rank/reply_tokens"]) == (3.0, 2.0)
    assert report["rank/groups_without_variance"] == 0.5
    # A malformed ranking counts 0 wherever its completion put the target.
    assert report["rank/ndcg@10"] == pytest.approx((1 + 0 + 2 / np.log2(3)) / 4)
    report = rollout_report("rank", rollouts, **scored, target_ranks=np.array([1, 1, 2, 11]))
    assert report["rank/ndcg@10"] == pytest.approx((1 + 0 + 1 / np.log2(3) + 0) / 4)

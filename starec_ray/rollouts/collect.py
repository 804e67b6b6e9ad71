"""The rollouts of one iteration: rank → feedback → reflect → rank again, scored."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.reward_group import RewardGroup
from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask, Task
from starec_ray.credit import rank_advantages, reply_advantages
from starec_ray.data.dataset import Dataset
from starec_ray.rollouts.case_order import CaseOrder
from starec_ray.rollouts.ledger import Ledger
from starec_ray.rollouts.reflection import (
    follow_up_tasks,
    reflect_tasks,
    reflection_rewards,
    revealed,
)
from starec_ray.rollouts.report import rollout_report
from starec_ray.rollouts.sampling import RunnerPool
from starec_ray.training import sequences

# Tasks draw their seeds from one seed upwards: requests of one iteration stay this far apart.
SEED_STEP = 100_000


def seed_of(run_seed: int, number: int) -> int:
    """Of an iteration, below 2³²: neighbouring runs and iterations have nothing in common."""
    return int(np.random.SeedSequence((run_seed, number)).generate_state(1)[0])


@dataclass(frozen=True, slots=True)
class Batch:
    """What one iteration learns from."""

    sequences: pa.Table  # `schemas.SEQUENCES`, both kinds of rollout
    rollouts: pa.Table  # all that was sampled, with rewards, for the run directory
    report: dict[str, float]
    ledger: Ledger  # of this iteration's rollouts alone
    weight_version: int  # of the weights that sampled it


@dataclass
class Collector:
    """Samples and scores iterations of stage two; which cases, and which seeds, follows from an
    iteration's number alone."""

    config: Any  # a STARecConfig
    agent: Agent
    dataset: Dataset
    runners: RunnerPool
    reward_group: RewardGroup
    order: CaseOrder

    def collect(self, number: int) -> Batch:
        """The rollouts of iteration `number` (0 …), by the weights that the runners hold.

        Raises:
            DeadlineError, TooManyFailuresError: no actor is left to sample or to score, or they
                fail too often.
            STARecError: a request that can't be answered, such as a prompt that doesn't fit.
        """
        config, clock, ledger = self.config, Clock({}), Ledger()
        each = config.cases_per_iteration
        seed = seed_of(config.seed, number)
        tasks = [
            RankTask(case_id, self.agent.initial_summary(case_id))
            for case_id in self.order.cases(number * each, each)
        ]
        ranked = self._sample(clock, ledger, "rank", tasks, config.group_size, seed)
        with clock("score"):
            scores = self.reward_group.score(ranked)
        rewards = scores.column("reward").to_numpy()
        advantages = rank_advantages(ranked, scores, self.dataset, config)
        batch = [sequences.from_rollouts("rank", ranked, advantages)]
        ranks = scores.column("target_rank").to_numpy()
        report = rollout_report("rank", ranked, rewards, advantages, ranks)
        kept = [_scored(ranked, scores, advantages, "rank")]

        reflecting = reflect_tasks(
            tasks, ranked, scores, self.dataset, config.reflect_share, number, seed
        )
        if reflecting:
            reflected = self._sample(
                clock, ledger, "reflect", reflecting, config.group_size, seed + SEED_STEP
            )
            follow_ups = follow_up_tasks(reflected, self.dataset)
            followed = self._sample(
                clock, ledger, "rank_again", follow_ups, 1, seed + 2 * SEED_STEP
            )
            ledger.followed_up += len(followed)
            with clock("score"):
                follow_scores = self.reward_group.score(followed)
            rewards = reflection_rewards(reflected, follow_scores)
            advantages = reply_advantages(rewards, reflected.column("task").to_numpy())
            batch.append(sequences.from_rollouts("reflect", reflected, advantages))
            report |= rollout_report("reflect", reflected, rewards, advantages)
            follow_rewards = follow_scores.column("reward").to_numpy()
            ranks = follow_scores.column("target_rank").to_numpy()
            report |= rollout_report("rank_again", followed, follow_rewards, None, ranks)
            kept += [
                _scored(reflected, revealed(reflecting, reflected), advantages, "reflect", rewards),
                _scored(followed, follow_scores, [np.zeros(1)] * len(followed), "rank_again"),
            ]
        return Batch(
            sequences=pa.concat_tables(batch),
            rollouts=pa.concat_tables(kept),
            ledger=ledger,
            report=report | clock.report | self.memory(),
            weight_version=self.runners.weight_version,
        )

    def memory(self) -> dict[str, float]:
        """Resident memory of env runners and reward actors, bytes, by name."""
        actors = {**self.runners.memory(), **self.reward_group.memory()}
        return {f"memory_bytes/{name}": float(size) for name, size in actors.items()}

    def _sample(
        self,
        clock: "Clock",
        ledger: Ledger,
        phase: str,
        tasks: Sequence[Task],
        rollouts: int,
        seed: int,
    ) -> pa.Table:
        with clock(phase):
            table = self.runners.sample(
                tasks,
                rollouts=rollouts,
                temperature=self.config.temperature,
                seed=seed,
                ledger=ledger,
            )
        tokens = pc.sum(pc.list_value_length(table.column("reply_ids"))).as_py()
        clock.report[f"tokens_per_second/{phase}"] = tokens / clock.report[f"seconds/{phase}"]
        return table


class Clock:
    """Adds the seconds of each phase to a report, under "seconds/PHASE"."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        key = f"seconds/{phase}"
        self.report[key] = self.report.get(key, 0.0) + time.perf_counter() - start


def _scored(
    rollouts: pa.Table,
    scores: pa.Table,
    advantages: Sequence[np.ndarray],
    kind: str,
    rewards: np.ndarray | None = None,
) -> pa.Table:
    """Rollouts with what was said of them, for the run directory; token columns left out."""
    table = rollouts.drop_columns(["prompt_ids", "reply_ids", "logprobs", "choices"])
    columns = {
        "reward": pa.array(
            scores.column("reward").to_numpy() if rewards is None else rewards, pa.float32()
        ),
        "advantage": pa.array([float(each.mean()) for each in advantages], pa.float32()),
        "target_rank": scores.column("target_rank"),
        "chosen": scores.column("chosen"),
    }
    table = table.set_column(0, "kind", pa.array([kind] * len(table), pa.string()))
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table

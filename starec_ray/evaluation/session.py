"""A running evaluation: env runners and reward actors without learners."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from actors.reward_group import RewardGroup
from actors.weight_transfer.base import Answers, CallRunners
from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import Task
from starec_ray.cluster.failures import Failures
from starec_ray.cluster.placement import actor_bundles
from starec_ray.cluster.start_deadline import StartDeadline
from starec_ray.data.dataset import Dataset
from starec_ray.rollouts.sampling import RunnerPool


@dataclass(frozen=True)
class SavedModel:
    """The weights of a saved model (a folder, or a Hugging Face id), which runners read."""

    folder: str
    version: int

    def deliver(self, runners: Sequence[int], call: CallRunners) -> Answers:
        request = {"folder": self.folder, "version": self.version}
        return call("load_model", dict.fromkeys(runners, request))


class SavedModels:
    """Samples from saved models of one architecture, one after the other in the same engines."""

    def __init__(self, pool: RunnerPool) -> None:
        self._pool = pool

    def load_model(self, folder: str) -> None:
        self._pool.load_weights(SavedModel(folder, self._pool.weight_version + 1))

    def sample(
        self, tasks: list[Task], *, rollouts: int, temperature: float, seed: int
    ) -> pa.Table:
        return self._pool.sample(tasks, rollouts=rollouts, temperature=temperature, seed=seed)


@dataclass(frozen=True)
class Session:
    """Everything that an evaluation asks: models, agent, cases, and who scores."""

    models: SavedModels
    agent: Agent
    dataset: Dataset
    rewards: RewardGroup


@contextmanager
def evaluation_session(config: Any) -> Iterator[Session]:
    """Starts what an evaluation needs by a resolved `STARecConfig`, and stops it at the end.

    Raises:
        DeadlineError: if the env runners don't start within `start_timeout_s`.
    """
    dataset = Dataset.load(config.data_path)
    agent = Agent.from_config(config, dataset)
    failures = Failures.from_config(config)
    name, timeout_s = config.env_runner_cls.__name__, config.start_timeout_s
    with StartDeadline("env runner", name, timeout_s, actor_bundles(config)[0]):
        group = EnvRunnerGroup(config=config, local_env_runner=False)
    pool = RunnerPool.from_config(group, config, failures)
    rewards = RewardGroup.from_config(config, failures)
    try:
        yield Session(SavedModels(pool), agent, dataset, rewards)
    finally:
        rewards.stop()
        pool.stop()

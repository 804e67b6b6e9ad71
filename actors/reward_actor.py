"""Reward actors: the only keepers of the held-out targets."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayActorError, RayTaskError

from starec_ray.data.dataset import load_targets
from starec_ray.errors import DataError, DeadlineError
from starec_ray.rewards import REWARD_SHAPES
from starec_ray.schemas import SCORES

MAX_ATTEMPTS = 3


class RewardActor:
    """Scores rankings against the targets, and so reveals the feedback.

    Args:
        data_path: the prepared data folder.
        reward_shape: of `rewards.REWARD_SHAPES`.
    """

    def __init__(self, data_path: str, reward_shape: str) -> None:
        self._targets = load_targets(data_path)
        self._reward = REWARD_SHAPES[reward_shape]

    def score(self, rankings: pa.Table) -> pa.Table:
        """A score for each ranking, in the order asked (`schemas.SCORES`).

        Args:
            rankings: columns case_id, ranking (item ids, best first, every candidate once) and
                malformed: a malformed ranking has a rank, but earns the malformed reward.

        Raises:
            DataError: for a case that the data folder has no target of.
        """
        case_ids = rankings.column("case_id").to_pylist()
        unknown = [case_id for case_id in case_ids if case_id not in self._targets]
        if unknown:
            raise DataError(
                f"no target is known of {len(unknown)} cases, the first is {unknown[0]!r}: "
                "the reward actors read another data folder than the cases come from."
            )
        chosen = [self._targets[case_id] for case_id in case_ids]
        ranks = np.fromiter(
            (
                ranking.index(target) + 1
                for ranking, target in zip(
                    rankings.column("ranking").to_pylist(), chosen, strict=True
                )
            ),
            dtype=np.int16,
            count=len(chosen),
        )
        malformed = rankings.column("malformed").to_numpy(zero_copy_only=False)
        rewards = self._reward(np.where(malformed, 0, ranks))
        return pa.table([case_ids, rewards, ranks, chosen], schema=SCORES)


class RewardGroup:
    """Driver side of the reward actors: a share of each request for each, with a deadline.

    Ray restarts a dead actor; its share is asked again.
    """

    def __init__(
        self, data_path: str, reward_shape: str, num_actors: int, timeout_s: float
    ) -> None:
        remote = ray.remote(num_cpus=0, max_restarts=-1)(RewardActor)
        self.actors = [remote.remote(data_path, reward_shape) for _ in range(num_actors)]
        self._timeout_s = timeout_s

    @classmethod
    def from_config(cls, config: Any) -> "RewardGroup":
        """Reads data_path, reward_shape, num_reward_actors and reward_timeout_s."""
        return cls(
            config.data_path,
            config.reward_shape,
            config.num_reward_actors,
            config.reward_timeout_s,
        )

    def score(self, rankings: pa.Table) -> pa.Table:
        """As `RewardActor.score`, over all actors.

        Raises:
            DataError: as `RewardActor.score`.
            DeadlineError: if a share isn't scored in time; names the actor and the cause.
        """
        asked = rankings.select(["case_id", "ranking", "malformed"])
        shares = list(self._shares(asked))
        refs = [actor.score.remote(share) for actor, share in shares]
        deadline = time.monotonic() + self._timeout_s
        answers = []
        for number, ((actor, share), first) in enumerate(zip(shares, refs, strict=True)):
            ref, cause = first, Exception("it never answered")
            for _ in range(MAX_ATTEMPTS):
                try:
                    answers.append(ray.get(ref, timeout=max(0.1, deadline - time.monotonic())))
                    break
                except RayTaskError as error:
                    raise error.as_instanceof_cause() from error
                except RayActorError as error:
                    cause = error
                    ref = actor.score.remote(share)  # waits for the restart
                except ray.exceptions.GetTimeoutError as error:
                    cause = error
                    break
            if len(answers) <= number:
                raise DeadlineError(
                    f"reward actor {number} didn't score {len(share)} rankings within "
                    f"{self._timeout_s:.0f} s: {cause}"
                ) from cause
        return pa.concat_tables(answers)

    def stop(self) -> None:
        """Ends the actors."""
        for actor in self.actors:
            ray.kill(actor)

    def _shares(self, rankings: pa.Table) -> Iterator[tuple[Any, pa.Table]]:
        size = max(1, -(-len(rankings) // len(self.actors)))
        for number, start in enumerate(range(0, len(rankings), size)):
            yield self.actors[number], rankings.slice(start, size)

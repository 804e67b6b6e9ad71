"""Reward actors: the only keepers of the held-out targets.

Apart from the group that asks them, for that one needs RLlib: without it an actor starts in a
quarter of the time, with half of the memory (benchmarks/startup.py).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from starec_ray.data.dataset import load_targets
from starec_ray.errors import DataError
from starec_ray.rewards import REWARD_SHAPES
from starec_ray.schemas import SCORES


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
            DataError: for a case that the data folder has no target of, and for a ranking
                without it.
        """
        case_ids = rankings.column("case_id").to_pylist()
        unknown = [case_id for case_id in case_ids if case_id not in self._targets]
        if unknown:
            raise DataError(
                f"no target is known of {len(unknown)} cases, the first is {unknown[0]!r}: "
                "the reward actors read another data folder than the cases come from."
            )
        chosen = [self._targets[case_id] for case_id in case_ids]
        ranks = np.zeros(len(chosen), np.int16)
        for row, ranking in enumerate(rankings.column("ranking").to_pylist()):
            if chosen[row] not in ranking:
                raise DataError(
                    f"the ranking of case {case_ids[row]!r} lacks its target: its candidates "
                    "aren't those of this data folder."
                )
            ranks[row] = ranking.index(chosen[row]) + 1
        malformed = rankings.column("malformed").to_numpy(zero_copy_only=False)
        rewards = self._reward(np.where(malformed, 0, ranks))
        return pa.table([case_ids, rewards, ranks, chosen], schema=SCORES)

    def apply(self, func: Callable[["RewardActor"], Any]) -> Any:
        """How RLlib's actor manager calls: it pings those that were lost."""
        return func(self)

    def ping(self) -> str:
        return "pong"

    def memory(self) -> float:
        """Resident bytes of this process."""
        return float(psutil.Process().memory_info().rss)

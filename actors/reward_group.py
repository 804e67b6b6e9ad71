"""Driver side of the reward actors: shares, deadlines, and what is asked again of whom."""

import contextlib
import time
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.reward_actor import RewardActor
from starec_ray.cluster.actor_logs import LOGS_SHOWN, last_lines
from starec_ray.cluster.failures import Failures
from starec_ray.cluster.placement import NEXT_TO_NOTHING, apart
from starec_ray.errors import DeadlineError, STARecError

PING_TIMEOUT_S = 1.0
# Shares that are being scored: number, actor, its answer.
Asked = list[tuple[int, int, ray.ObjectRef]]


class RewardGroup:
    """Driver side of the reward actors: a share of each request for each, with a deadline.

    Ray restarts a dead actor; its share is asked again of those that are up. One that hangs is
    ended at the deadline, and then there is a second one for what is left.
    """

    def __init__(
        self,
        data_path: str,
        reward_shape: str,
        num_actors: int,
        timeout_s: float,
        failures: Failures,
    ) -> None:
        remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(RewardActor)
        self._place = apart(num_actors)
        if self._place:
            strategy = PlacementGroupSchedulingStrategy(self._place)
            remote = remote.options(**NEXT_TO_NOTHING, scheduling_strategy=strategy)
        self.actors = [remote.remote(data_path, reward_shape) for _ in range(num_actors)]
        self._manager = FaultTolerantActorManager(self.actors)
        self._timeout_s = timeout_s
        self._failures = failures

    @classmethod
    def from_config(cls, config: Any, failures: Failures) -> "RewardGroup":
        """Reads data_path, reward_shape, num_reward_actors and reward_timeout_s."""
        return cls(
            config.data_path,
            config.reward_shape,
            config.num_reward_actors,
            config.reward_timeout_s,
            failures,
        )

    def score(self, rankings: pa.Table) -> pa.Table:
        """As `RewardActor.score`, over all actors.

        Raises:
            DataError: as `RewardActor.score`.
            DeadlineError: if a share isn't scored by the second deadline; names the actor and the
                cause.
        """
        deadline, is_second = time.monotonic() + self._timeout_s, False
        shares = self._shares(rankings.select(["case_id", "ranking", "malformed"]))
        answers: dict[int, pa.Table] = {}
        cause: object = "no failure was seen"
        while waiting := [number for number in range(len(shares)) if number not in answers]:
            healthy = self._healthy(deadline, cause)
            asked: Asked = []
            for turn, number in enumerate(waiting):
                actor_id = healthy[turn % len(healthy)]
                ref = self.actors[actor_id].score.remote(shares[number])
                asked.append((number, actor_id, ref))
            found, lost, hung = self._collect(asked, deadline)
            answers |= found
            before = cause
            for actor_id, error in lost.items():
                cause = f"reward actor {actor_id}: {error}"
                self._lost(actor_id, error)
            for actor_id, number in hung.items():
                fault = DeadlineError(
                    f"reward actor {actor_id} didn't score {len(shares[number])} rankings "
                    f"within {self._timeout_s:.0f} s (reward_timeout_s)"
                    + (f", the second time; before that: {before}" if is_second else "")
                    + last_lines(f"reward actor {actor_id}", self.actors[actor_id])
                )
                if is_second:
                    raise fault
                ray.kill(self.actors[actor_id], no_restart=False)
                cause = fault
                self._lost(actor_id, fault)
            if hung:
                deadline, is_second = time.monotonic() + self._timeout_s, True
        return pa.concat_tables([answers[number] for number in range(len(shares))])

    def _collect(
        self, asked: Asked, deadline: float
    ) -> tuple[dict[int, pa.Table], dict[int, RayError], dict[int, int]]:
        """The answers by share; of the actors that gave none, the error of those that died, and
        the first share of those that hang.

        Raises:
            STARecError: a fault of the request.
            DeadlineError: an actor can't start, which Ray doesn't try again.
        """
        answers: dict[int, pa.Table] = {}
        lost: dict[int, RayError] = {}
        hung: dict[int, int] = {}
        for number, actor_id, ref in asked:
            try:
                answers[number] = ray.get(ref, timeout=max(0.1, deadline - time.monotonic()))
            except RayTaskError as error:
                if isinstance(error.cause, STARecError):
                    raise error.cause from error
                raise
            except GetTimeoutError:
                hung.setdefault(actor_id, number)
            except RayError as error:
                if actor_id not in hung:
                    lost.setdefault(actor_id, error)
                if getattr(error, "actor_init_failed", False):
                    self._lost(actor_id, error)
                    raise DeadlineError(
                        f"a reward actor can't start; reward actor {actor_id}: {error}"
                    ) from error
        return answers, lost, hung

    def memory(self) -> dict[str, float]:
        """Resident bytes of each actor that answers, by name."""
        refs = {actor.memory.remote(): number for number, actor in enumerate(self.actors)}
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=PING_TIMEOUT_S)
        found = {}
        for ref in ready:
            with contextlib.suppress(RayError):
                found[f"reward_actor_{refs[ref]}"] = ray.get(ref)
        return found

    def stop(self) -> None:
        """Ends the actors."""
        for actor in self.actors:
            ray.kill(actor)
        if self._place:
            remove_placement_group(self._place)

    def _lost(self, actor_id: int, cause: object) -> None:
        if self._manager.is_actor_healthy(actor_id):  # once for all of its shares
            self._failures.lost("reward_actor", actor_id, cause)
        self._manager.set_actor_state(actor_id, False)

    def _healthy(self, deadline: float, cause: object) -> list[int]:
        """Actors that answer; waits for a restart if there is none."""
        while True:
            for actor_id in self._manager.probe_unhealthy_actors(
                timeout_seconds=PING_TIMEOUT_S, mark_healthy=True
            ):
                self._failures.back("reward_actor", actor_id)
            if healthy := self._manager.healthy_actor_ids():
                return healthy
            if time.monotonic() > deadline:
                shown = list(enumerate(self.actors))[:LOGS_SHOWN]
                raise DeadlineError(
                    f"none of {len(self.actors)} reward actors came back within "
                    f"{self._timeout_s:.0f} s (reward_timeout_s); the last cause: {cause}"
                    + "".join(last_lines(f"reward actor {i}", actor) for i, actor in shown)
                )
            time.sleep(0.2)

    def _shares(self, rankings: pa.Table) -> list[pa.Table]:
        size = max(1, -(-len(rankings) // len(self.actors)))
        return [rankings.slice(start, size) for start in range(0, max(1, len(rankings)), size)]

"""Sampling over many env runners: split, deadline, retry, and the current weights everywhere."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from actors.weight_transfer.base import Answers, Publication
from starec_ray.agent.tasks import Task
from starec_ray.cluster.actor_logs import LOGS_SHOWN, last_lines
from starec_ray.cluster.failures import Failures
from starec_ray.errors import DeadlineError, StaleWeightsError, STARecError
from starec_ray.rollouts.ledger import Ledger

PING_TIMEOUT_S = 5.0
PING_WHILE_OTHERS_WAIT_S = 0.5
MAX_ATTEMPTS = 4  # a request that fails so often in a row is itself the fault


class RunnerPool:
    """Driver side of the env runners.

    A runner gets the current weights before it samples, also after a restart; what a dead
    runner was asked is asked again of the others. Ray restarts the dead ones, but gives up
    one whose start fails: another is made in its place.

    Args:
        group: RLlib's env runner group.
        sample_timeout_s, transfer_timeout_s, start_timeout_s: deadlines in seconds.
        failures: told of every runner that is lost.
    """

    def __init__(
        self,
        group: EnvRunnerGroup,
        sample_timeout_s: float,
        transfer_timeout_s: float,
        start_timeout_s: float,
        failures: Failures,
    ) -> None:
        # RLlib's own foreach calls end an actor whose method raises, and hide the cause: the
        # actors are called directly, and their state is reported to the manager.
        self._group = group
        self._manager = group._worker_manager
        self._sample_timeout_s = sample_timeout_s
        self._transfer_timeout_s = transfer_timeout_s
        self._start_timeout_s = start_timeout_s
        self._failures = failures
        self._weights: Publication | None = None  # the current ones
        self._current: set[int] = set()  # runners that hold the current weights
        self._one_served = False  # a runner has held weights: others can
        self._never_started: set[int] = set()  # runners whose start failed before that
        self._last_fault: object = "none was seen"

    @classmethod
    def from_config(cls, group: EnvRunnerGroup, config: Any, failures: Failures) -> Self:
        """With the deadlines of a `STARecConfig`."""
        return cls(
            group,
            config.sample_timeout_s,
            config.transfer_timeout_s,
            config.start_timeout_s,
            failures,
        )

    def start_fault(self) -> object:
        """Why a runner that isn't healthy is so."""
        self._ping_lost()
        return self._last_fault

    def stop(self) -> None:
        """Ends all runners: those that are idle let go of their engines first."""
        if refs := [actor.stop.remote() for actor in self._manager.actors().values()]:
            ray.wait(refs, num_returns=len(refs), timeout=PING_TIMEOUT_S)
        self._manager.clear()

    @property
    def weight_version(self) -> int:
        """Of the current weights; -1 before there are any."""
        return self._weights.version if self._weights else -1

    def load_weights(self, weights: Publication) -> dict[str, float]:
        """Gives every runner these weights, and those that come back later; returns the slowest
        runner's seconds, by part."""
        self._weights, self._current = weights, set()
        return self._send_weights(self._manager.healthy_actor_ids())

    def sleep(self) -> None:
        """Runners free their GPUs' memory; the next weights wake them.

        Those that are being restarted are waited for: an engine that comes up while the learners
        work takes what they leave free at that moment for its own.
        """
        deadline = time.monotonic() + self._start_timeout_s
        self._ping_lost()
        while self._are_coming_back() and time.monotonic() < deadline:
            time.sleep(1.0)
            self._ping_lost()
        self._call_in_time("sleep", {r: {} for r in self._manager.healthy_actor_ids()})
        self._current = set()

    def sample(
        self,
        tasks: Sequence[Task],
        *,
        rollouts: int,
        temperature: float,
        seed: int,
        ledger: Ledger | None = None,
    ) -> pa.Table:
        """Rollouts of all tasks, ordered by task then rollout (`schemas.ROLLOUTS`).

        The ledger, if there is one, is told of what is asked, finished and lost.

        Raises:
            DeadlineError: if some tasks failed `MAX_ATTEMPTS` times; shows the last cause.
        """
        ledger = ledger or Ledger()
        ledger.asked += len(tasks) * rollouts
        waiting = list(enumerate(tasks))
        done: list[pa.Table] = []
        cause: object = None
        for _ in range(MAX_ATTEMPTS):
            runners = self._ready_runners()
            size = math.ceil(len(waiting) / len(runners))
            shares = {r: waiting[i * size : (i + 1) * size] for i, r in enumerate(runners)}
            shares = {runner: share for runner, share in shares.items() if share}
            answers = self._call(
                "sample",
                {
                    runner: {
                        "tasks": [task for _, task in share],
                        "rollouts": rollouts,
                        "temperature": temperature,
                        "seed": seed,
                        "numbers": [number for number, _ in share],
                        "weight_version": self.weight_version,
                    }
                    for runner, share in shares.items()
                },
                self._sample_timeout_s,
            )
            waiting = []
            for runner, share in shares.items():
                answer = answers[runner]
                if isinstance(answer, Exception):
                    cause = answer
                    waiting += share
                    ledger.lost += len(share) * rollouts
                else:
                    done.append(_renumbered(answer, share))
                    ledger.finished += len(answer)
            if not waiting:
                table = pa.concat_tables(done)
                return table.sort_by([("task", "ascending"), ("rollout", "ascending")])
            ledger.asked_again += len(waiting) * rollouts
        raise DeadlineError(
            f"{len(waiting)} of {len(tasks)} tasks failed on env runners {MAX_ATTEMPTS} times; "
            f"the last cause: {cause}"
        )

    def memory(self) -> dict[str, float]:
        """Resident bytes of each healthy runner, by name."""
        answers = self._call_in_time("memory", {r: {} for r in self._manager.healthy_actor_ids()})
        return {
            f"env_runner_{runner}": answer["rss_bytes"]
            for runner, answer in answers.items()
            if not isinstance(answer, Exception)
        }

    def _send_weights(self, runners: Sequence[int]) -> dict[str, float]:
        if self._weights is None:
            raise STARecError("env runners were asked to sample before any weights were loaded.")
        answers = self._weights.deliver(runners, self._call_in_time)
        slowest: dict[str, float] = {}
        for runner, answer in answers.items():
            if isinstance(answer, Exception):
                continue  # comes back through `_ready_runners`
            self._current.add(runner)
            self._one_served = True
            self._failures.back("env_runner", runner)
            for key, seconds in answer.items():
                slowest[key] = max(slowest.get(key, 0.0), seconds)
        return slowest

    def _ready_runners(self) -> list[int]:
        """Healthy runners with the current weights; waits for a restart if there is none."""
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            self._ping_lost()
            healthy = self._manager.healthy_actor_ids()
            if stale := [runner for runner in healthy if runner not in self._current]:
                self._send_weights(stale)
            if ready := [runner for runner in healthy if runner in self._current]:
                return ready
            if len(self._never_started) == self._manager.num_actors():
                raise STARecError(f"no env runner could start; the last cause: {self._last_fault}")
            if time.monotonic() > deadline:
                shown = list(self._manager.actors().items())[:LOGS_SHOWN]
                raise DeadlineError(
                    f"none of {self._manager.num_actors()} env runners came up with weights "
                    f"within {self._start_timeout_s:.0f} s; their last fault: {self._last_fault}. "
                    "Too little memory is the commonest cause."
                    + "".join(last_lines(f"env runner {runner}", actor) for runner, actor in shown)
                )
            time.sleep(1.0)

    def _are_coming_back(self) -> bool:
        settled = len(self._manager.healthy_actor_ids()) + len(self._never_started)
        return settled < self._manager.num_actors()

    def _ping_lost(self) -> None:
        """Finds out which of the lost runners are back, and what keeps the others away."""
        actors, healthy = self._manager.actors(), self._manager.healthy_actor_ids()
        refs = {actors[runner].ping.remote(): runner for runner in actors.keys() - set(healthy)}
        if not refs:
            return
        patience = PING_WHILE_OTHERS_WAIT_S if healthy else PING_TIMEOUT_S
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=patience)
        for ref in ready:
            runner = refs[ref]
            try:
                ray.get(ref)
                self._manager.set_actor_state(runner, True)
            except RayError as error:
                self._last_fault = error
                if getattr(error, "actor_init_failed", False):  # Ray leaves it at that
                    if self._one_served:
                        self._make_anew(runner, error)
                    else:
                        self._never_started.add(runner)

    def _make_anew(self, runner: int, fault: RayError) -> None:
        """Another actor in the place of one whose start failed; it counts as a loss."""
        self._failures.lost("env_runner", runner, f"its start failed: {fault}")
        self._never_started.discard(runner)
        group: Any = self._group
        self._manager.actors()[runner] = group._make_worker(
            env_creator=group._env_creator,
            validate_env=None,
            worker_index=runner,
            num_workers=self._manager.num_actors(),
            recreated_worker=True,
            config=group._remote_config_obj_ref,
        )

    def _call_in_time(self, method: str, kwargs_of: Mapping[int, dict[str, Any]]) -> Answers:
        return self._call(method, kwargs_of, self._transfer_timeout_s)

    def _call(
        self, method: str, kwargs_of: Mapping[int, dict[str, Any]], timeout_s: float
    ) -> Answers:
        """Calls one method on some runners at once; an answer is a value or an Exception.

        Raises:
            STARecError: raised by a runner's method: a fault of the request, not of the runner.
        """
        actors = self._manager.actors()
        refs = {getattr(actors[r], method).remote(**kwargs): r for r, kwargs in kwargs_of.items()}
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s)
        answers: Answers = {}
        for ref, runner in refs.items():
            if ref in ready:
                answers[runner] = self._answer(ref, runner)
            else:
                answers[runner] = fault = DeadlineError(
                    f"env runner {runner} didn't finish {method} within {timeout_s:.0f} s"
                    + last_lines(f"env runner {runner}", actors[runner])
                )
                self._lose(runner, fault, kill=True)  # it may hang for ever
        return answers

    def _answer(self, ref: ray.ObjectRef, runner: int) -> Any:
        """The value, or what the runner failed with, which is dealt with.

        Raises:
            STARecError: a fault of the request.
        """
        try:
            return ray.get(ref)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, StaleWeightsError):  # Ray restarted it: it is up
                self._current.discard(runner)
                self._failures.lost("env_runner", runner, "it had to be restarted")
                return cause
            if isinstance(cause, STARecError):
                raise cause from error
            self._lose(runner, error, kill=True)  # its engine may be broken
            return error
        except RayError as error:  # dead, out of memory, its node lost
            self._lose(runner, error)
            return error

    def _lose(self, runner: int, cause: Exception, *, kill: bool = False) -> None:
        if kill:
            ray.kill(self._manager.actors()[runner], no_restart=False)
        self._last_fault = cause
        self._current.discard(runner)
        self._manager.set_actor_state(runner, False)
        self._failures.lost("env_runner", runner, cause)


def _renumbered(rollouts: pa.Table, share: Sequence[tuple[int, Task]]) -> pa.Table:
    """Task numbers within a runner's share → within the whole request."""
    places = pa.array([share[i][0] for i in rollouts.column("task").to_pylist()], pa.int32())
    index = rollouts.schema.get_field_index("task")
    return rollouts.set_column(index, rollouts.schema.field(index), places)

"""A deadline for the start of actors, for which RLlib waits without an end."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import ray
from ray.core.generated import common_pb2
from ray.exceptions import RayError

from starec_ray.cluster.actor_logs import LOGS_SHOWN, last_lines_of
from starec_ray.cluster.placement import TOLD_AFTER_S, shortage, tell_waiting
from starec_ray.errors import DeadlineError

LOOKS_S = 1.0  # apart, once the deadline has come
UP = "ALIVE"  # its constructor has returned


class StartDeadline:
    """A block in which actors start: those that take too long are ended, and it fails with why.

    Those that have no place are told of before, once, with what is missing.

    Ending them makes RLlib's wait for them fail. An actor counts as late that isn't up by the
    deadline; where `until_left` is set any does, for the block goes on with work of its own.

    Args:
        kind: of actor, for the message: "learner".
        class_name: of the actors, without the place where it is made.
        timeout_s: deadline in seconds (start_timeout_s).
        bundle: what each of them takes, under Ray's names.

    Raises:
        DeadlineError: on leaving the block: how many were late and in what state, what is wanted,
            there and missing, and the last lines of their logs. None of them is left then; nor,
            with `until_left`, where the block fails otherwise.
    """

    def __init__(
        self,
        kind: str,
        class_name: str,
        timeout_s: float,
        bundle: Mapping[str, float],
        *,
        until_left: bool = False,
    ) -> None:
        self._kind = kind
        self._class_name = class_name
        self._timeout_s = timeout_s
        self._bundle = bundle
        self._until_left = until_left
        self._before: set[str] = set()
        self._fault = ""
        self._left = threading.Lock()
        self._over = False
        self._timers: list[threading.Timer] = []

    def __enter__(self) -> Self:
        self._before = set(self._actors())
        self._arm(TOLD_AFTER_S, self._tell_waiting)
        self._arm(self._timeout_s, self._end_late)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for timer in self._timers:
            timer.cancel()
        with self._left:  # until a deadline that has come is done with
            self._over = True
            if self._fault and (error is None or isinstance(error, Exception)):
                raise DeadlineError(self._fault) from error
            if error is not None and self._until_left:
                self._end(self._new())

    def _arm(self, seconds: float, then: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, then)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _tell_waiting(self) -> None:
        with self._left:
            if self._over:
                return
            if waiting := _without_a_place(self._new().values()):
                tell_waiting(self._kind, [self._bundle] * len(waiting))

    def _end_late(self) -> None:
        with self._left:
            if self._over:  # it came as the block was left: what has started there stays
                return
            started = self._new()
            if not started:  # nothing was asked for yet
                self._arm(LOOKS_S, self._end_late)
                return
            late = [a for a in started.values() if self._until_left or a["State"] != UP]
            if not late:
                return
            waiting = _without_a_place(late)
            missing = f" {shortage([self._bundle] * len(waiting))}." if waiting else ""
            self._fault = (
                f"{len(late)} of {len(started)} {self._kind}s did not start within "
                f"{self._timeout_s:g} s (start_timeout_s); Ray says of them: "
                f"{', '.join(sorted({actor['State'] for actor in late}))}.{missing}"
                + "".join(last_lines_of(f"a {self._kind}", a) for a in late[:LOGS_SHOWN])
            )
            self._end(started)

    def _new(self) -> dict[str, dict[str, Any]]:
        return {i: a for i, a in self._actors().items() if i not in self._before}

    def _actors(self) -> dict[str, dict[str, Any]]:
        return own_actors(self._class_name)

    def _end(self, actors: Mapping[str, Any]) -> None:
        for actor_id in actors:
            with contextlib.suppress(RayError, ValueError):  # it ended by itself
                _core().kill_actor(ray.ActorID.from_hex(actor_id), True)


def own_actors(class_name: str) -> dict[str, dict[str, Any]]:
    """Ray's entries for those of a class that this process started and that are not dead, by id."""
    own = _address()
    job = _core().get_current_job_id()  # a cluster keeps the entries of all jobs that ever ran
    return {
        actor_id: actor
        for actor_id, actor in ray._private.state.actors(job_id=job).items()
        if actor["ActorClassName"].rpartition(".")[2] == class_name
        and actor["State"] != "DEAD"
        and (actor["OwnerAddress"]["IPAddress"], actor["OwnerAddress"]["Port"]) == own
    }


def _without_a_place(actors: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [actor for actor in actors if not actor["Pid"]]


def _address() -> tuple[str, int]:
    """This process's, as Ray has it for the owner of an actor."""
    messages: Any = common_pb2
    address = messages.Address.FromString(_core().get_owner_address(ray.put(None)))
    return address.ip_address, address.port


def _core() -> Any:
    worker: Any = ray._private.worker.global_worker
    return worker.core_worker

"""Learners that start while the env runners do, which RLlib starts one after the other."""

import threading
import time
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import Any, Self

import ray
from ray.rllib.core.learner.learner_group import LearnerGroup

from starec_ray.cluster.placement import share_gpus
from starec_ray.cluster.start_deadline import own_actors
from starec_ray.errors import DeadlineError
from starec_ray.training.learner_calls import end_learners

GRACE_S = 30.0  # for learners that are starting, once the env runners have failed
POLL_S = 0.1


class ParallelLearnerStart:
    """A block in which the config's `build_learner_group` gives a group that starts on entering.

    The env runners have their places first: a learner could take the one that an engine needs.
    Learners that share GPUs with engines wait until those are up, for an engine takes what it finds
    free. Where the block fails, the learners are ended.

    Args:
        config: a resolved `STARecConfig`; a local learner starts when RLlib asks for it.
    """

    _of_block: ContextVar["ParallelLearnerStart | None"] = ContextVar("learners", default=None)

    def __init__(self, config: Any) -> None:
        self._config = config
        self._group: Future[LearnerGroup] | None = None
        self._failed = threading.Event()

    @classmethod
    def group(cls) -> LearnerGroup | None:
        """That of the block that this thread is in: waits for it, and raises what it failed of."""
        block = cls._of_block.get()
        return block._group.result() if block and block._group else None

    def __enter__(self) -> Self:
        if self._config.num_learners and not share_gpus(self._config):
            self._group = Future()
            before = set(own_actors(self._config.env_runner_cls.__name__))
            threading.Thread(
                target=self._build, args=[before], name="learners", daemon=True
            ).start()
        self._token = self._of_block.set(self)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._of_block.reset(self._token)
        if error is None or self._group is None:
            return
        self._failed.set()
        if isinstance(error, Exception):  # else someone doesn't want to wait
            wait([self._group], timeout=GRACE_S)
        if self._group.done() and (also := self._group.exception()) and also is not error:
            error.add_note(f"the learners failed too: {also}")
        self._group.add_done_callback(_end)

    def _build(self, before: set[str]) -> None:
        assert self._group
        try:
            self._wait_for_places(before)
            spec = self._config.get_default_rl_module_spec()
            self._group.set_result(self._config.build_learner_group(rl_module_spec=spec))
        except BaseException as error:
            self._group.set_exception(error)

    def _wait_for_places(self, before: set[str]) -> None:
        """Until all env runners have a node. That they get none is told by those who start them."""
        kind, wanted = self._config.env_runner_cls.__name__, self._config.num_env_runners
        deadline = time.monotonic() + self._config.start_timeout_s
        placed: set[str] = set()  # also those that fail in their start
        while len(placed) < wanted:
            if self._failed.wait(POLL_S) or time.monotonic() > deadline:
                raise DeadlineError(
                    f"{len(placed)} of {wanted} env runners have a place: no learner was started."
                )
            started = own_actors(kind)
            placed |= {i for i in started.keys() - before if started[i]["Address"]["NodeID"]}


def _end(group: "Future[LearnerGroup]") -> None:
    if not group.exception() and ray.is_initialized():
        end_learners(group.result())

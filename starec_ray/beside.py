"""Learners that start while the env runners do, which RLlib starts one after the other."""

from concurrent.futures import Future
from contextvars import ContextVar
from threading import Thread
from typing import Any, Self

from ray.rllib.core.learner.learner_group import LearnerGroup

from starec_ray.placement import share_gpus


class LearnersBeside:
    """A block in which the config's `build_learner_group` gives a group that starts on entering.

    Where the block fails, the group is ended as soon as it is there. Learners that share GPUs with
    engines wait for them: an engine takes what it finds free when it starts.

    Args:
        config: a resolved `STARecConfig`; a local learner starts when RLlib asks for it.
    """

    _of_block: ContextVar["LearnersBeside | None"] = ContextVar("learners", default=None)

    def __init__(self, config: Any) -> None:
        self._config = config
        self._group: Future[LearnerGroup] | None = None

    @classmethod
    def group(cls) -> LearnerGroup | None:
        """That of the block that this thread is in: waits for it, and raises what it failed of."""
        block = cls._of_block.get()
        return block._group.result() if block and block._group else None

    def __enter__(self) -> Self:
        if self._config.num_learners and not share_gpus(self._config):
            self._group = Future()
            Thread(target=self._build, name="learners", daemon=True).start()
        self._token = self._of_block.set(self)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._of_block.reset(self._token)
        if error is not None and self._group:
            self._group.add_done_callback(_end)

    def _build(self) -> None:
        assert self._group
        try:
            spec = self._config.get_default_rl_module_spec()
            self._group.set_result(self._config.build_learner_group(rl_module_spec=spec))
        except BaseException as error:
            self._group.set_exception(error)


def _end(group: "Future[LearnerGroup]") -> None:
    if not group.exception():
        group.result().shutdown()

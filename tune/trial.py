"""STARec as a sweep runs it."""

from collections.abc import Mapping
from typing import Any

from starec_ray.algorithm import STARec
from starec_ray.training.recovery import Recovery


def metric_path(metric: str) -> str:
    """Where a trial's result holds a validation metric."""
    return f"evaluation/validation/{metric}"


class SweepTrial(STARec):
    """A trial that goes on from its newest checkpoint where its learners are lost, as
    `starec train` does, and whose best checkpoint Tune can tell."""

    def setup(self, config: Any) -> None:
        super().setup(config)
        self._newest: Any = None  # what Tune knows of the checkpoint that was saved or loaded last
        self._recover = Recovery(lambda: self.training_iteration, self._go_back)

    def step(self) -> dict[str, Any]:
        return _with_scores(self._recover(super().step))

    def save(self, checkpoint_dir: str | None = None) -> Any:
        self._newest = super().save(checkpoint_dir)
        return self._newest

    def restore(self, checkpoint_path: Any) -> None:
        super().restore(checkpoint_path)
        self._newest = checkpoint_path
        self._recover.begin()

    def _go_back(self) -> None:
        if self._newest is None:
            self.start_over()
        else:
            self.restore(self._newest)


def with_settings(kind: Any, settings: Mapping[str, Any]) -> type:
    """Trials of a kind, under its name, to which these settings are given whatever Tune keeps for
    them: in a sweep that is resumed it keeps those that they were drawn with."""

    class Given(kind):
        def __init__(self, config: Mapping[str, Any], **more: Any) -> None:
            super().__init__({**config, **settings}, **more)

        @classmethod
        def default_resource_request(cls, config: Mapping[str, Any]) -> Any:
            return super().default_resource_request({**config, **settings})

    Given.__name__ = kind.__name__  # by which Tune knows it
    return Given


def _with_scores(result: dict[str, Any]) -> dict[str, Any]:
    """Tune orders checkpoints by what stands at the top of a result alone."""
    users = result.get("evaluation", {}).get("validation", {})
    return result | {metric_path(name): value for name, value in users.items()}

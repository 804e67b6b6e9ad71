"""STARec as a sweep runs it."""

from collections.abc import Collection, Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from starec_ray.algorithm import STARec
from starec_ray.training.recovery import MOST_REPEATED_LOSSES, Recovery


def metric_path(metric: str) -> str:
    """Where a trial's result holds a validation metric."""
    return f"evaluation/validation/{metric}"


class SweepTrial(STARec):
    """A trial that goes on from its newest checkpoint where its learners are lost, as
    `starec train` does, and whose best checkpoint Tune can tell. Where they are lost while it is
    saved or restored, Tune starts it again: see `Restarts`."""

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


class Restarts(tune.Callback):
    """Has Tune start a trial again, from its newest checkpoint, that fails while it is saved or
    restored, `MOST_REPEATED_LOSSES` - 1 times in all. What else ends a trial would end it again: it
    can't be set up, has collapsed, or its learners were lost too often.

    Tune's `FailureConfig` has one limit for all of that. This one holds for the next event, the one
    that a step of Tune's handles.

    Args:
        ended: trials that aren't started again.
    """

    def __init__(self, ended: Collection[str]) -> None:
        self._ended = ended
        self._before: dict[str, int] = {}  # trial → its failures before a sweep was resumed

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        for trial in trials:
            before = self._before.setdefault(trial.trial_id, trial.num_failures)
            once_more = trial.num_failures - before < MOST_REPEATED_LOSSES - 1
            between = trial.is_saving or trial.is_restoring
            again = once_more and between and trial.trial_id not in self._ended
            trial.max_failures = trial.num_failures + again


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

"""RLlib's Algorithm, as far as it goes another way here: weights stay with the learners, engines
evaluate, and folders are shared."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback

from starec_ray.cluster.failures import Failures
from starec_ray.cluster.placement import actor_bundles
from starec_ray.cluster.start_deadline import StartDeadline
from starec_ray.errors import ConfigError, STARecError
from starec_ray.rollouts.sampling import RunnerPool

SAVING = ".saving-"  # how folders begin that a checkpoint is written into


class RLlibAlgorithm(Algorithm):
    """An algorithm whose weights never come into the driver."""

    config: Any
    failures: Failures  # of all actors
    shared_folder: Path  # where learners, on whichever nodes, keep something for a while

    def __repr__(self) -> str:
        """RLlib's, which hides the cause where a trial fails for its configuration."""
        return super().__repr__() if self.config else type(self).__name__

    @contextmanager
    def _env_runners_start(self) -> Iterator[None]:
        """Ends env runners that aren't up within `start_timeout_s`.

        Raises:
            DeadlineError: that was so.
            STARecError: none came up; names the cause.
        """
        config = self.config
        name, bundle = config.env_runner_cls.__name__, actor_bundles(config)[0]
        try:
            with StartDeadline("env runner", name, config.start_timeout_s, bundle):
                yield
        except IndexError as error:  # RLlib asks the first of no healthy env runners
            assert self.env_runner_group
            runners = RunnerPool.from_config(self.env_runner_group, config, self.failures)
            cause = runners.start_fault()
            runners.stop()
            raise STARecError(f"an env runner could not start: {cause}") from error

    def _call_back(self, event: str, **more: Any) -> None:
        """RLlib's callbacks of an event ("on_evaluate_end"), of the class and of the settings."""
        make_callback(
            event,
            self.callbacks,
            getattr(self.config, f"callbacks_{event}"),
            kwargs={"algorithm": self, "metrics_logger": self.metrics, **more},
        )

    def get_checkpointable_components(self) -> list:
        """None of RLlib's: the learners write their own shards (`save_to_path`)."""
        return []

    def set_state(self, state: dict[str, Any]) -> None:
        """RLlib's; a state holds no weights here.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a state comes with its weights: save_to_path and restore_from_path.")

    def get_weights(self, policies: Any = None) -> dict:
        """RLlib's, for weights that fit into the driver.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("weights lie with the learners: save_model writes them.")

    def set_weights(self, weights: Any) -> None:
        """RLlib's, as `get_weights`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("weights come from `model.name`, or from restore_from_path.")

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        """No: the env runners that sample evaluate too, between two iterations."""
        return False

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Nothing to do: `RunnerPool` brings runners back, with the current weights.

        RLlib would ask the learners for a module that env runners don't have.
        """
        return []

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Tune's way to `save_checkpoint`; it names no folder, and Ray would take one of this
        machine alone, where learners on other nodes have no part."""
        if checkpoint_dir or not self._storage:
            return super().save(checkpoint_dir)
        for left in self.shared_folder.glob(f"{SAVING}*"):  # by a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
        with TemporaryDirectory(prefix=SAVING, dir=self.shared_folder) as folder:
            return super().save(folder)

    def _shared_folder(self) -> Path:
        """Where all learners, on whichever nodes, can keep something for a while: a trial's folder
        in Tune's storage, else RLlib's `logdir`, which is this machine's own. Whoever runs learners
        on several nodes sets `shared_folder` to storage that all of them see, as `train` does."""
        storage = getattr(self, "_storage", None)
        if storage and isinstance(storage.storage_filesystem, LocalFileSystem):
            return Path(storage.trial_fs_path)
        return Path(self.logdir)

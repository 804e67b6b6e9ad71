"""The anchor's best epoch, whose weights stage two begins with."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from starec_ray.run_dir import BEST_EPOCH  # in the shared folder, and in checkpoints
from starec_ray.training.learner_calls import LearnerCalls


class BestEpoch:
    """Keeps the learners' state of the best epoch so far while the anchor lasts.

    Args:
        learners: write it, and read it again.
        shared_folder: tells where all of them can.

    Attributes:
        score: of the best epoch so far, the higher the better.
    """

    def __init__(self, learners: LearnerCalls, shared_folder: Callable[[], Path]) -> None:
        self._learners = learners
        self._shared_folder = shared_folder
        self.score = -math.inf

    def offer(self, score: float) -> bool:
        """Keeps the learners' state of now if its score is the best, which none is that isn't a
        number; whether it was."""
        if not score > self.score:
            return False
        self.score = score
        self._learners("save_checkpoint", str(self._folder))
        return True

    def take_back(self) -> bool:
        """Gives the learners the state that is kept, if one is; whether one was."""
        if not self._folder.exists():
            return False
        # Skipped steps are counted over all epochs.
        self._learners("load_checkpoint", str(self._folder), keeping=["skipped_steps"])
        return True

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def save(self, checkpoint: Path) -> None:
        """Lays a copy into a run's checkpoint."""
        if self._folder.exists():
            shutil.copytree(self._folder, checkpoint / BEST_EPOCH, dirs_exist_ok=True)

    def restore(self, checkpoint: Path) -> None:
        """Brings back what a run's checkpoint has a copy of."""
        self.clear()
        if (copy := checkpoint / BEST_EPOCH).exists():
            shutil.copytree(copy, self._folder)

    @property
    def _folder(self) -> Path:
        return self._shared_folder() / BEST_EPOCH

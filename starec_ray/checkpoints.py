"""A run's checkpoints: whole or not there, the newest few kept."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

from starec_ray.errors import ConfigError

PROGRESS = "progress.json"  # written last: how far the run was


class Saves(Protocol):
    """An algorithm, as far as it is saved."""

    @property
    def training_iteration(self) -> int: ...

    def save_to_path(self, path: str | Path) -> str: ...


class Checkpoints:
    """The folder `iteration-00012` holds the state after the run's twelfth iteration.

    Args:
        folder: made with the first checkpoint.
        keep: so many are kept, the newest; 0 keeps all.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, algo: Saves) -> Path:
        """Writes one beside its place, then puts it there, and lets the oldest go."""
        self.folder.mkdir(exist_ok=True)
        target = self.folder / f"iteration-{algo.training_iteration:05d}"
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was stopped here
        algo.save_to_path(part)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
        if self.keep:
            for old in self.all()[: -self.keep]:
                shutil.rmtree(old)
        return target

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = self.folder.glob("iteration-*") if self.folder.is_dir() else ()
        return sorted(
            path
            for path in found
            if re.fullmatch(r"iteration-\d+", path.name) and (path / PROGRESS).is_file()
        )

    def newest(self) -> Path | None:
        """The one to go on from; None if there is none."""
        return next(reversed(self.all()), None)


def progress_of(checkpoint: Path) -> dict[str, Any]:
    """How far the run was: training_iteration, anchor_updates_done, iterations_done, …

    Raises:
        ConfigError: if it is no whole checkpoint.
    """
    try:
        return json.loads((checkpoint / PROGRESS).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{checkpoint} is no whole checkpoint: {error}") from error

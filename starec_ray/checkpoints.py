"""A run's checkpoints: whole or not there, checked before one is gone on from; the newest and the
best are kept."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from starec_ray.errors import ConfigError, StorageError
from starec_ray.progress import phase

PROGRESS = "progress.json"  # how far the run was
FORMAT = 2  # of what a checkpoint holds
SCORE = "score.json"  # what the best one is chosen by, the higher the better
MANIFEST = "manifest.json"  # written last: every other file's size and SHA-256
FULL = (errno.ENOSPC, errno.EDQUOT)


class Saves(Protocol):
    """An algorithm, as far as it is saved."""

    @property
    def training_iteration(self) -> int: ...

    def save_to_path(self, path: str | Path) -> str: ...


class Checkpoints:
    """The folder `iteration-00012` holds the state after the run's twelfth iteration.

    Args:
        folder: made with the first checkpoint.
        keep: so many are kept, the newest, and the best beside them; 0 keeps all.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, algo: Saves, score: float | None = None) -> Path:
        """Writes one beside its place, then puts it there, and lets the oldest go.

        Where it can't be written what was written of it is removed, and the older ones stay as
        they are.

        Args:
            score: of the state that is saved, the higher the better; one without can't be best.

        Raises:
            StorageError: the disk is full.
        """
        self.folder.mkdir(exist_ok=True)
        self._check_room()
        target = self.folder / f"iteration-{algo.training_iteration:05d}"
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed here
        try:
            algo.save_to_path(part)
            if score is not None:
                (part / SCORE).write_text(json.dumps(score))
            (part / MANIFEST).write_text(json.dumps(_manifest(part), indent=1))
        except BaseException as error:
            full = is_full(error, self.folder)
            shutil.rmtree(part, ignore_errors=True)
            if full:
                raise self._no_room("the disk is full") from error
            raise
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
        if self.keep:
            for old in self.all()[: -self.keep]:
                if old != self.best():
                    shutil.rmtree(old)
        return target

    def best(self) -> Path | None:
        """The one with the highest score, of equals the newest; None if none has one."""
        scored = [path for path in self.all() if (path / SCORE).is_file()]
        return max(
            reversed(scored), key=lambda p: json.loads((p / SCORE).read_text()), default=None
        )

    def all(self) -> list[Path]:
        """Those that were written to their end, oldest first."""
        found = self.folder.glob("iteration-*") if self.folder.is_dir() else ()
        return sorted(
            path
            for path in found
            if re.fullmatch(r"iteration-\d+", path.name) and (path / MANIFEST).is_file()
        )

    def newest(self, warn: Callable[[str], None]) -> Path | None:
        """The newest one that is as it was written; None if none was ever written.

        Args:
            warn: told of each newer one that was passed over, and why.

        Raises:
            ConfigError: if there are some, and none is sound.
        """
        written = self.all()
        faults = []
        for path in reversed(written):
            if not (fault := _fault(path)):
                return path
            faults.append(f"{path} is not as it was written: {fault}")
            warn(faults[-1])
        if faults:
            raise ConfigError(f"no checkpoint can be gone on from: {'; '.join(faults)}.")
        return None

    def _check_room(self) -> None:
        """The newest one tells how much the next will take."""
        if not (written := self.all()):
            return
        wanted = sum(path.stat().st_size for path in written[-1].rglob("*") if path.is_file())
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            raise self._no_room(f"it takes {wanted / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")

    def _no_room(self, why: str) -> StorageError:
        kept = self.all()
        newest = f"{kept[-1]} is whole: make room, then --resume" if kept else "there is none yet"
        return StorageError(f"no checkpoint can be written to {self.folder}: {why}. {newest}.")


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether it is a full disk, or quota, that made writing to a folder fail.

    Errors from other processes and from libraries tell it in their text at best.
    """
    said = any(os.strerror(number) in str(error) for number in FULL)
    return said or getattr(error, "errno", None) in FULL or not shutil.disk_usage(folder).free


def progress_of(checkpoint: Path) -> dict[str, Any]:
    """How far the run was: training_iteration, anchor_updates_done, iterations_done, …

    Raises:
        ConfigError: if it is no whole checkpoint, or one of another version of this program.
    """
    try:
        progress = json.loads((checkpoint / PROGRESS).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{checkpoint} is no whole checkpoint: {error}") from error
    found = progress.get("format", 1) if isinstance(progress, dict) else None
    if found != FORMAT:
        raise ConfigError(
            f"{checkpoint} has format {found}, and this version reads {FORMAT}: go on from it "
            "with the version that wrote it, or begin another run with its saved model."
        )
    return progress


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Each file under the folder, by its path in it: {"bytes": n, "sha256": hexadecimal}."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _fault(checkpoint: Path) -> str:
    """What differs from the manifest, in words; empty if nothing does."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        expected = {checkpoint / name: (e["bytes"], e["sha256"]) for name, e in manifest.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return f"its {MANIFEST} can't be read ({error})"
    with phase(f"checking {checkpoint.name}", len(expected)) as progress:
        for path, (size, sha256) in expected.items():
            name = path.relative_to(checkpoint)
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _hash(path) != sha256:
                return f"{name} was altered"
            progress.advance()
    return ""


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

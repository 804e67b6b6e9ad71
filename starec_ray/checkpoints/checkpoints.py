"""A run's checkpoints: whole or not there, checked before one is gone on from; the newest and the
best are kept."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from starec_ray.checkpoints.changes import changes_of_a_run
from starec_ray.checkpoints.files import MANIFEST, fault, progress_of, sync
from starec_ray.checkpoints.store import ITERATION, CheckpointStore
from starec_ray.errors import ConfigError, StorageError
from starec_ray.files import put_in_place

SCORE = "score.json"  # what the best one is chosen by, the higher the better
FULL = (errno.ENOSPC, errno.EDQUOT)


class Saves(Protocol):
    """An algorithm, as far as it is saved."""

    @property
    def training_iteration(self) -> int: ...

    def save_to_path(self, path: str | Path) -> str:
        """Writes into the folder; its manifest, of all that is there, last."""


class Checkpoints:
    """The folder `iteration-00012` holds the state after the run's twelfth iteration.

    Args:
        folder: made with the first checkpoint.
        keep: so many are kept, the newest, and the best beside them; 0 keeps all. One that isn't
            sound doesn't count, and is left to whoever looks for the cause.
        identity: of the run, see `starec_ray.config.identity`; without it, another run's are as
            good.
        tell: told of each one that isn't sound, and why, once; and of one that couldn't be copied.
        store: where each is copied to.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        identity: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] = lambda fault: None,
        store: CheckpointStore | None = None,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self._identity = identity
        self._tell = tell
        self.store = store
        self._told: set[str] = set()
        self._let_go: set[str] = set()  # names that the store may have still

    def save(self, algo: Saves, score: float | None = None) -> Path:
        """Writes one beside its place, then puts it there, and lets the oldest go; the store then
        has the same.

        Where it can't be written what was written of it is removed, and the older ones stay as
        they are.

        Args:
            score: of the state that is saved, the higher the better; one without can't be best.

        Raises:
            StorageError: the disk is full.
        """
        self.folder.mkdir(exist_ok=True)
        self._clear_parts()
        self._check_room()
        target = self.folder / f"iteration-{algo.training_iteration:05d}"
        part = target.with_name(target.name + ".part")
        try:
            part.mkdir()
            if score is not None:
                (part / SCORE).write_text(json.dumps(score))
            algo.save_to_path(part)
        except BaseException as error:
            full = is_full(error, self.folder)
            shutil.rmtree(part, ignore_errors=True)
            if full:
                raise self._no_room("the disk is full") from error
            raise
        put_in_place(part, target)
        sync(self.folder)
        self._let_go.discard(target.name)  # written again
        best = self.best()
        old = [path for path in self.sound()[: -self.keep] if path != best] if self.keep else []
        for path in old:
            _remove(path)
            self._let_go.add(path.name)
        if self.store:
            self._copy(self.store)
        return target

    def bring(self) -> None:
        """Those that the store has and this folder lacks, or has no longer as they were written,
        the newest first, unless this folder is ahead: on another machine, after one that went on
        elsewhere, or after a copy was cut off.

        Raises:
            ConfigError: the store is another run's.
            StorageError: the disk is full, or the store failed.
        """
        if not self.store:
            return
        self._check_owner(self.store)
        if not (copies := self.store.names()):
            return
        here = [path.name for path in self.all() if not fault(path)]
        if here and here[-1] > copies[-1]:
            return
        self.folder.mkdir(exist_ok=True)
        self._clear_parts()
        try:
            for name in reversed(copies):
                if name not in here:
                    self.store.get(name, self.folder)
        except StorageError as error:
            if is_full(error, self.folder):
                raise self._no_room("the disk is full") from error
            raise

    def claim_store(self) -> None:
        """Says in the store whose it is, as long as there is no copy to tell."""
        if self.store:
            self.store.claim(self._identity)

    def named(self, name: str) -> Path:
        """The one of that name, or at that path.

        Raises:
            ConfigError: there is no such one, or it isn't sound.
        """
        written = self.all()
        given = Path(name)
        chosen = self.folder / given.name
        elsewhere = given.name != str(given) and given.parent.resolve() != self.folder.resolve()
        if elsewhere or chosen not in written:
            there = ", ".join(path.name for path in written) or "none"
            raise ConfigError(f"{self.folder} holds no checkpoint {name}; there are: {there}.")
        if found := self._fault(chosen):
            raise ConfigError(f"{found}. Take another one.")
        return chosen

    def go_back_to(self, name: str) -> None:
        """Lets those after one go, in the store too, so that it is the newest.

        Raises:
            ConfigError: as `named`, or the store is another run's.
        """
        chosen = self.named(name)
        if self.store:  # first: else what it still has would come back with a new machine
            self._check_owner(self.store)
            for copy in self.store.names():
                if copy > chosen.name:
                    self.store.remove(copy)
        for later in self.all():
            if later.name > chosen.name:
                _remove(later)

    def best(self) -> Path | None:
        """The one with the highest score, of equals the newest; None if none has one."""
        scored = [path for path in self.sound() if (path / SCORE).is_file()]
        return max(
            reversed(scored), key=lambda p: json.loads((p / SCORE).read_text()), default=None
        )

    def all(self) -> list[Path]:
        """Those that were written to their end, oldest first."""
        found = self.folder.glob("iteration-*") if self.folder.is_dir() else ()
        return sorted(
            path
            for path in found
            if re.fullmatch(ITERATION, path.name) and (path / MANIFEST).is_file()
        )

    def sound(self) -> list[Path]:
        """Those that are as they were written, and this run's, oldest first."""
        return [path for path in self.all() if not self._fault(path)]

    def newest(self) -> Path | None:
        """The newest sound one; None if none was ever written.

        Raises:
            ConfigError: if there are some, and none is sound.
        """
        faults = []
        for path in reversed(self.all()):
            if not (found := self._fault(path)):
                return path
            faults.append(found)
        if faults:
            raise ConfigError(
                f"no checkpoint can be gone on from: {'; '.join(faults)}. Bring back what changed, "
                "or start another run."
            )
        return None

    def _fault(self, path: Path) -> str:
        """Why it can't be gone on from, in words; empty if it can."""
        try:
            if found := fault(path):
                found = f"{path} is not as it was written: {found}"
            elif self._identity is not None:
                others = _differences(progress_of(path)["identity"], self._identity)
                found = f"{path} is not this run's: {'; '.join(others)}" if others else ""
        except ConfigError as error:
            found = str(error)
        if found and found not in self._told:
            self._told.add(found)
            self._tell(found)
        return found

    def _copy(self, store: CheckpointStore) -> None:
        """What fails is tried again with the next one: the run can go on without."""
        try:
            owner = self._check_owner(store)
            if owner is None:
                store.claim(self._identity)
            for path in self.sound():
                store.put(path)
            if owner not in (None, self._identity):
                store.claim(self._identity)  # what the copies from here on are made with
            for name in sorted(self._let_go):
                store.remove(name)
                self._let_go.discard(name)
        except Exception as error:  # each kind of store has its own
            self._tell(f"{store.address} has no copy of the newest checkpoint yet: {error}")

    def _check_owner(self, store: CheckpointStore) -> Any:
        """Whose it is, as far as that is told.

        Raises:
            ConfigError: it is another run's.
        """
        if self._identity is None or (owner := store.owner()) is None:
            return None
        if others := _differences(owner, self._identity):
            raise ConfigError(
                f"{store.address} is another run's ({'; '.join(others)}): bring back what changed, "
                "or give this run a run.checkpoint_storage of its own."
            )
        return owner

    def _clear_parts(self) -> None:
        """Removes what runs that were killed here had begun, and what takes up its room."""
        for part in self.folder.glob("iteration-*.part"):
            shutil.rmtree(part, ignore_errors=True)

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
        newest = f"{kept[-1]} is whole" if kept else "there is none yet"
        return StorageError(
            f"no checkpoint can be written to {self.folder}: {why}. {newest}: make room, then "
            "--resume."
        )


def _remove(path: Path) -> None:
    """Whole, or, where that is cut off, as a part that the next one to be saved clears away."""
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    path.rename(part)
    shutil.rmtree(part)


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether it is a full disk, or quota, that made writing to a folder fail.

    Errors from other processes and from libraries tell it in their text at best.
    """
    said = any(os.strerror(number) in str(error) for number in FULL)
    return said or getattr(error, "errno", None) in FULL or not shutil.disk_usage(folder).free


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Between two identities, a text each."""
    inputs = [
        f"{name} is no longer what it learned from"
        for name, sha in now["inputs"].items()
        if saved["inputs"].get(name) != sha
    ]
    return inputs + changes_of_a_run(saved["settings"], now["settings"])

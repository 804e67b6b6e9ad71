"""A second place for checkpoints, in any store that pyarrow or fsspec reaches: S3, GCS, …"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import fsspec
import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, PyFileSystem

from starec_ray.checkpoints.files import MANIFEST, PROGRESS
from starec_ray.errors import ConfigError, STARecError, StorageError
from starec_ray.files import put_in_place
from starec_ray.heartbeat import Heartbeat, HeartbeatDeadline
from starec_ray.progress import Phase, phase

T = TypeVar("T")

ITERATION = r"iteration-\d+"  # a checkpoint's name
OWNER = "run.json"  # beside them: whose they are, or will be
AT_ONCE = 16 * 2**20  # bytes
REMEDY = "Look after the store, or give it longer: fault_tolerance.storage_timeout_s"
UNKNOWN_SCHEME = "Unrecognized filesystem type"  # in pyarrow's error


class CheckpointStore:
    """Whole checkpoints beside each other: one counts as there once its manifest is.

    Its methods raise DeadlineError where it gives no answer, and StorageError where it fails.

    Args:
        address: of the folder, such as s3://bucket/runs/first; what pyarrow doesn't know is asked
            of fsspec.
        timeout_s: longest wait for one answer: to a question, or to 16 MiB; seconds.

    Raises:
        ConfigError: there is no such store, it can't be read, or it gives no answer.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        self.address = address
        self._in_time = HeartbeatDeadline(timeout_s, REMEDY)
        try:
            finding = f"finding {address}"
            self._files, root = self._in_time(finding, lambda heartbeat: _filesystem(address))
            self._root = root.rstrip("/")
            self.names()
        except Exception as error:  # each kind of store has its own
            raise ConfigError(
                f"run.checkpoint_storage {address!r} can't be used: {str(error).rstrip('.')}. Give "
                "an address like s3://bucket/folder that this machine may read and write."
            ) from error

    def names(self) -> list[str]:
        """Those that are whole, oldest first."""
        return self._ask(f"listing {self.address}", self._names)

    def owner(self) -> Any:
        """The identity of the run that claimed it, or of its newest copy; None where it is
        nobody's.

        Raises:
            ConfigError: that can't be read.
        """
        return self._ask(f"looking whose {self.address} is", self._owner)

    def claim(self, identity: Any) -> None:
        """Makes it a run's, before there is a copy that tells it.

        Args:
            identity: plain JSON values.
        """
        self._ask(f"writing to {self.address}", lambda heartbeat: self._claim(identity))

    def put(self, checkpoint: Path) -> None:
        """Copies one there, its manifest last, unless it is there already."""
        looking = f"looking for {checkpoint.name} in {self.address}"
        if self._ask(looking, lambda heartbeat: self._has(checkpoint, heartbeat)):
            return
        manifest = checkpoint / MANIFEST
        files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
        files.sort(key=lambda path: path == manifest)
        copying = f"copying {checkpoint.name} to {self.address}"
        with phase(copying, len(files)) as progress:
            self._ask(copying, lambda heartbeat: self._put(checkpoint, files, heartbeat, progress))

    def get(self, name: str, folder: Path) -> None:
        """Brings one into a folder, whole or not at all."""
        source = FileSelector(f"{self._root}/{name}", recursive=True)
        there = self._ask(
            f"listing {name} in {self.address}", lambda heartbeat: self._files.get_file_info(source)
        )
        files = [info.path for info in there if info.type == FileType.File]
        bringing = f"bringing {name} from {self.address}"
        with phase(bringing, len(files)) as progress:
            self._ask(
                bringing, lambda heartbeat: self._get(name, files, folder, heartbeat, progress)
            )

    def remove(self, name: str) -> None:
        """Lets one go, if there is something of it."""
        removing = f"removing {name} from {self.address}"
        self._ask(removing, lambda heartbeat: self._remove(name, heartbeat))

    def clear(self) -> None:
        """Lets all of them go."""
        for name in self.names():
            self.remove(name)

    def _ask(self, what: str, work: Callable[[Heartbeat], T]) -> T:
        try:
            return self._in_time(what, work)
        except STARecError:
            raise
        except Exception as error:  # each kind of store has its own
            raise StorageError(f"{what} failed: {error}") from error

    def _owner(self, heartbeat: Heartbeat) -> Any:
        newest = [f"{name}/{PROGRESS}" for name in self._names(heartbeat)[-1:]]
        places = [f"{self._root}/{place}" for place in (OWNER, *newest)]
        for place in self._files.get_file_info(places):
            if place.type == FileType.File:
                with self._files.open_input_stream(place.path) as file:
                    text = file.read()
                try:
                    return json.loads(text)["identity"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(
                        f"{place.path} of {self.address} doesn't tell whose it is ({error!r}): "
                        "give another run.checkpoint_storage."
                    ) from error
        return None

    def _claim(self, identity: Any) -> None:
        self._files.create_dir(self._root, recursive=True)
        with self._files.open_output_stream(f"{self._root}/{OWNER}") as file:
            file.write(json.dumps({"identity": identity}).encode())

    def _names(self, heartbeat: Heartbeat) -> list[str]:
        there = self._files.get_file_info(FileSelector(self._root, allow_not_found=True))
        heartbeat()
        names = sorted(info.base_name for info in there if re.fullmatch(ITERATION, info.base_name))
        manifests = self._files.get_file_info([f"{self._root}/{name}/{MANIFEST}" for name in names])
        whole = zip(names, manifests, strict=True)
        return [name for name, manifest in whole if manifest.type == FileType.File]

    def _has(self, checkpoint: Path, heartbeat: Heartbeat) -> bool:
        if checkpoint.name not in self._names(heartbeat):
            return False
        place = f"{self._root}/{checkpoint.name}/{MANIFEST}"
        with self._files.open_input_stream(place) as file:
            return file.read() == (checkpoint / MANIFEST).read_bytes()

    def _put(
        self, checkpoint: Path, files: list[Path], heartbeat: Heartbeat, progress: Phase
    ) -> None:
        target = f"{self._root}/{checkpoint.name}"
        self._remove(checkpoint.name, heartbeat)
        for path in files:
            place = f"{target}/{path.relative_to(checkpoint).as_posix()}"
            self._files.create_dir(place.rpartition("/")[0], recursive=True)
            heartbeat()
            with open(path, "rb") as source, self._files.open_output_stream(place) as copy:
                _copy(source, copy, heartbeat)
            progress.advance()

    def _get(
        self, name: str, files: list[str], folder: Path, heartbeat: Heartbeat, progress: Phase
    ) -> None:
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            for place in files:
                heartbeat()
                inside = PurePosixPath(place).relative_to(f"{self._root}/{name}")
                if ".." in inside.parts:  # a store's keys may be anything
                    raise ConfigError(f"{place} in {self.address} is no file of a checkpoint.")
                path = part / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._files.open_input_stream(place) as file, open(path, "wb") as copy:
                    _copy(file, copy, heartbeat)
                progress.advance()
            heartbeat()
            put_in_place(part, folder / name)  # of one that was damaged, if there is one
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _remove(self, name: str, heartbeat: Heartbeat) -> None:
        place = f"{self._root}/{name}"
        manifest, folder = self._files.get_file_info([f"{place}/{MANIFEST}", place])
        heartbeat()
        if manifest.type == FileType.File:
            self._files.delete_file(manifest.path)  # first: what is left of it is none
            heartbeat()
        if folder.type == FileType.Directory:
            self._files.delete_dir(place)


def _copy(source: BinaryIO, target: BinaryIO, heartbeat: Heartbeat) -> None:
    while piece := source.read(AT_ONCE):
        target.write(piece)
        target.flush()  # a store may take it behind our back, and wait only at the end
        heartbeat()


def _filesystem(address: str) -> tuple[FileSystem, str]:
    """And the folder's path in it."""
    try:
        return FileSystem.from_uri(address)
    except pa.ArrowInvalid as error:  # another scheme, an odd character, or no address at all
        if "://" not in address:
            raise
        try:
            files, path = fsspec.core.url_to_fs(address)
        except ImportError as missing:  # what to install helps where pyarrow has no such store
            raise (missing if UNKNOWN_SCHEME in str(error) else error) from None
        return PyFileSystem(FSSpecHandler(files)), path

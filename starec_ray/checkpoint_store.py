"""A second place for checkpoints, in any store that pyarrow or fsspec reaches: S3, GCS, …"""

import os
import re
import shutil
from pathlib import Path, PurePosixPath

import fsspec
import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, PyFileSystem

from starec_ray.checkpoint_files import MANIFEST
from starec_ray.errors import ConfigError
from starec_ray.progress import phase

ITERATION = r"iteration-\d+"  # a checkpoint's name
AT_ONCE = 16 * 2**20  # bytes


class CheckpointStore:
    """Whole checkpoints beside each other: one counts as there once its manifest is.

    Args:
        address: of the folder, such as s3://bucket/runs/first; what pyarrow doesn't know is asked
            of fsspec.

    Raises:
        ConfigError: there is no such store, or it can't be read.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self._files, root = _filesystem(address)
            self._root = root.rstrip("/")
            self.names()
        except Exception as error:  # each kind of store has its own
            raise ConfigError(
                f"run.checkpoint_storage {address!r} can't be used: {error}. Give an address like "
                "s3://bucket/folder that this machine may read and write."
            ) from error

    def names(self) -> list[str]:
        """Those that are whole, oldest first."""
        there = self._files.get_file_info(FileSelector(self._root, allow_not_found=True))
        names = sorted(info.base_name for info in there if re.fullmatch(ITERATION, info.base_name))
        manifests = self._files.get_file_info([f"{self._root}/{name}/{MANIFEST}" for name in names])
        whole = zip(names, manifests, strict=True)
        return [name for name, manifest in whole if manifest.type == FileType.File]

    def put(self, checkpoint: Path) -> None:
        """Copies one there, its manifest last, unless it is there already."""
        target = f"{self._root}/{checkpoint.name}"
        manifest = checkpoint / MANIFEST
        if checkpoint.name in self.names():
            with self._files.open_input_stream(f"{target}/{MANIFEST}") as file:
                if file.read() == manifest.read_bytes():
                    return
        self.remove(checkpoint.name)
        files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
        files.sort(key=lambda path: path == manifest)
        with phase(f"copying {checkpoint.name} to {self.address}", len(files)) as progress:
            for path in files:
                place = f"{target}/{path.relative_to(checkpoint).as_posix()}"
                self._files.create_dir(place.rpartition("/")[0], recursive=True)
                with open(path, "rb") as source, self._files.open_output_stream(place) as copy:
                    shutil.copyfileobj(source, copy, AT_ONCE)
                progress.advance()

    def get(self, name: str, folder: Path) -> None:
        """Brings one into a folder, whole or not at all."""
        source = f"{self._root}/{name}"
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        there = self._files.get_file_info(FileSelector(source, recursive=True))
        files = [info for info in there if info.type == FileType.File]
        with phase(f"bringing {name} from {self.address}", len(files)) as progress:
            for info in files:
                inside = PurePosixPath(info.path).relative_to(source)
                if ".." in inside.parts:  # a store's keys may be anything
                    raise ConfigError(f"{info.path} in {self.address} is no file of a checkpoint.")
                path = part / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._files.open_input_stream(info.path) as file, open(path, "wb") as copy:
                    shutil.copyfileobj(file, copy, AT_ONCE)
                progress.advance()
        os.replace(part, folder / name)

    def remove(self, name: str) -> None:
        """Lets one go, if there is something of it."""
        place = f"{self._root}/{name}"
        manifest, folder = self._files.get_file_info([f"{place}/{MANIFEST}", place])
        if manifest.type == FileType.File:
            self._files.delete_file(manifest.path)  # first: what is left of it is none
        if folder.type == FileType.Directory:
            self._files.delete_dir(place)

    def clear(self) -> None:
        """Lets all of them go."""
        for name in self.names():
            self.remove(name)


def _filesystem(address: str) -> tuple[FileSystem, str]:
    """And the folder's path in it."""
    try:
        return FileSystem.from_uri(address)
    except pa.ArrowInvalid:  # a scheme that pyarrow doesn't know, or no address at all
        if "://" not in address:
            raise
        files, path = fsspec.core.url_to_fs(address)
        return PyFileSystem(FSSpecHandler(files)), path

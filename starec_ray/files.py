"""Files that a crash leaves whole, places that can't be written, and paths told from addresses of a
store."""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from starec_ray.errors import ConfigError, StorageError


def local_path(path: str | Path) -> Path:
    """The path.

    Raises:
        ConfigError: it is an address like s3://bucket/folder, which would be made here as a folder
            of that name.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # `Path` makes one slash of two
        raise ConfigError(
            f"{path} is no folder of this machine: mount the store (mountpoint-s3, gcsfuse) and "
            "give the folder that it is mounted at. Copies of a run's checkpoints go to such an "
            "address by run.checkpoint_storage."
        )
    return Path(path)


def sha256_of(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_yaml(path: str | Path, missing: str) -> Any:
    """What a YAML file holds.

    Args:
        missing: what is told where there is no such file.

    Raises:
        ConfigError: it isn't there, can't be read, or is no YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(missing) from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder: give a YAML file.") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML in UTF-8: {error}") from None


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Appends to a JSON-lines file, in the place of a last line that a crash cut off, if there is
    one; it is on the disk when this returns."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[bytes]:
    """Those of a JSON-lines file, without one that a crash cut off; none if there is no file."""
    if not path.exists():
        return []
    # As bytes: what was cut off may be half a letter. Behind the last newline is it, or nothing.
    return path.read_bytes().split(b"\n")[:-1]


def read_json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The whole lines of a JSON-lines file, as text and read; none if there is no file."""
    return [(line.decode(), json.loads(line)) for line in whole_lines(path)]


@contextmanager
def locked(file: IO[bytes] | int) -> Iterator[bool]:
    """Has an open file or folder to itself until the block ends, or the process does.

    On SMB nobody else can read or write what is locked: take a file that holds nothing else.

    Yields:
        Whether it is so: storage without locks (Lustre without `-o flock`, folders on NFS) can't
        tell.

    Raises:
        BlockingIOError: another has it.
    """
    held = True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except PermissionError as error:  # as SMB says it
        raise BlockingIOError(*error.args) from error
    except OSError:
        held = False
    try:
        yield held
    finally:
        if held:
            with suppress(OSError):  # the storage has gone, and the lock with it
                fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def failing_for(place: Path, remedy: str) -> Iterator[None]:
    """What the system refuses becomes an error that names the place and says what to do.

    Raises:
        StorageError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{place} can't be written: {error}. {remedy}") from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write aside, which takes the place of `path` when the block ends well."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def put_in_place(part: Path, folder: Path) -> None:
    """Moves a finished folder to where it belongs, in the place of an older one: both are whole
    wherever a crash comes between."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)  # left by a run that was killed here
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)

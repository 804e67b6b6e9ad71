"""Files that a crash leaves whole, places that can't be written, and paths told from addresses of a
store."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def read_json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The whole lines of a JSON-lines file, as text and read; none if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # A whole line ends in a newline; behind the last one is nothing, or a torn line.
    return [(text, json.loads(text)) for text in lines[:-1]]


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

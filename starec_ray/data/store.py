"""A prepared data folder on disk: Parquet tables of fixed schemas beside a manifest.

Folders are written aside and renamed, so that a reader sees a whole folder or none. The bytes
depend on the tables alone: no clock, no host name, fixed writer options.
"""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from starec_ray import schemas
from starec_ray.errors import DataError
from starec_ray.files import failing_for, local_path, locked, sha256_of

SCHEMA_VERSION = 1
REMEDY = "Make room, or give another --out."
MANIFEST = "manifest.json"
TABLES: dict[str, pa.Schema] = {
    "catalog": schemas.CATALOG,
    "users": schemas.USERS,
    "interactions": schemas.INTERACTIONS,
    "cases": schemas.CASES,
    "targets": schemas.TARGETS,
}
_PREPARE = "write the folder with `starec data prepare`"


def check_out(out: Path, *, force: bool) -> None:
    """Raise DataError unless a data folder may be written to `out`.

    An existing folder with something in it is replaced only with `force`, and only when it is a
    data folder and nothing else lies in it, so that a mistyped path costs nothing.
    """
    with failing_for(out, REMEDY):
        if not local_path(out).exists():
            return
        if not out.is_dir():
            raise DataError(f"{out} is a file: give a folder for --out.")
        if not any(out.iterdir()):
            return
        if not force:
            raise DataError(f"{out} is not empty: give another --out, or --force to replace it.")
        if reason := _not_replaceable(out):
            raise DataError(
                f"{out} is not empty and {reason}: --force replaces only data folders. "
                "Give another --out."
            )


def _not_replaceable(folder: Path) -> str:
    """Why a folder isn't a data folder alone; nothing if it is. Older layouts are data folders."""
    if not (folder / MANIFEST).is_file():
        return f"holds no {MANIFEST}, so it is no data folder"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        return f"its {MANIFEST} is not one that `starec data prepare` wrote"
    own = {MANIFEST, *(f"{name}.parquet" for name in TABLES)}
    foreign = (path.name for path in folder.iterdir() if path.name not in own or path.is_dir())
    first = min(foreign, default=None)
    return f"holds {first!r}, which is no part of a data folder" if first else ""


def write_folder(
    out: Path, tables: Mapping[str, pa.Table], manifest: Mapping[str, Any], *, force: bool = False
) -> None:
    """Write the tables named in `TABLES` and the manifest to the folder `out`, or nothing.

    Raises DataError as `check_out` does, and StorageError for a full disk and the like. `tables`
    have exactly the schemas of `TABLES`.
    """
    check_out(out, force=force)
    with _replacing(Path(os.path.abspath(out))) as content:
        for name, schema in TABLES.items():
            if not tables[name].schema.equals(schema):
                raise ValueError(f"table {name} has another schema:\n{tables[name].schema}")
            # Fixed options: the defaults of a later pyarrow must not change the bytes.
            pq.write_table(
                tables[name],
                content / f"{name}.parquet",
                version="2.6",
                compression="zstd",
                row_group_size=1 << 20,
            )
        text = json.dumps({"schema_version": SCHEMA_VERSION, **manifest}, indent=2)
        (content / MANIFEST).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `out` when the block ends, and goes if it fails."""
    with failing_for(out, REMEDY), ExitStack() as stack:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        stack.enter_context(_lock(aside))
        stack.callback(_clear, aside, out)
        content = aside / "new"
        content.mkdir()
        yield content
        if out.exists():
            os.replace(out, aside / "old")
        os.replace(content, out)


def clear_abandoned(out: Path) -> None:
    """Remove what killed writers of `out` left beside it; put back what one had moved away."""
    out = Path(os.path.abspath(out))
    with failing_for(out, REMEDY):
        # As mkdtemp names them: eight characters.
        for aside in out.parent.glob(f".{glob.escape(out.name)}.????????.partial"):
            with _lock(aside) as abandoned:
                if abandoned:
                    _clear(aside, out)


def _clear(aside: Path, out: Path) -> None:
    """Remove a folder of `_replacing`; the old `out` in it goes back if no new one is there."""
    if (aside / "old").exists() and not out.exists():
        os.replace(aside / "old", out)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Whether this process has the folder to itself, until the block ends or the process does."""
    with ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            alone = stack.enter_context(locked(descriptor))
        except OSError:  # another has it, or has removed it
            alone = False
        yield alone


def content_hash(folder: Path) -> str:
    """SHA-256 of the tables that a run learns from: all but the interactions, of which the cases
    were made. Wherever the folder lies, the same tables have the same.

    Raises:
        DataError: if one of them isn't there.
    """
    digest = hashlib.sha256()
    for path in (folder / f"{name}.parquet" for name in TABLES if name != "interactions"):
        try:
            digest.update(sha256_of(path).encode())
        except OSError as error:
            raise DataError(f"{path} can't be read ({error.strerror}): {_PREPARE}.") from error
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a data folder; DataError if there is none or its layout is another's."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: {_PREPARE}.") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): {_PREPARE} again.") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: "
            f"{_PREPARE} again."
        )
    return manifest


def read_table(folder: Path, name: str) -> pa.Table:
    """The table `name` of a data folder, one chunk a column, checked against its schema.

    Raises DataError for a missing file, a missing or wrongly typed column, or a null where the
    schema allows none. Further columns are left out.
    """
    path = folder / f"{name}.parquet"
    schema = TABLES[name]
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: {_PREPARE}.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} can't be read as Parquet ({error}): {_PREPARE} again.") from None
    for field in schema:
        if field.name not in table.column_names:
            raise DataError(f"{path} has no column {field.name!r} ({field.type}).")
        column = table.column(field.name)
        if column.type != field.type:
            raise DataError(f"{path}: column {field.name!r} is {column.type}, not {field.type}.")
        if not field.nullable and column.null_count:
            raise DataError(f"{path}: column {field.name!r} has {column.null_count} nulls.")
    return table.select(schema.names).cast(schema).combine_chunks()

"""The files of one checkpoint: how far the run was, and a manifest that says what belongs."""

import json
import os
from pathlib import Path
from typing import Any

from starec_ray.errors import ConfigError
from starec_ray.files import sha256_of
from starec_ray.progress import phase

PROGRESS = "progress.json"  # how far the run was
FORMAT = 4  # of what a checkpoint holds
LEARNERS = "learners"  # the folder that they write
REFERENCE = "reference"  # in it, the frozen anchor's model, where there is a KL term
MANIFEST = "manifest.json"  # written last: every other file's size and SHA-256
RAYS = {".metadata.json", ".tune_metadata"}  # what Ray may lay beside them

_sound: set[int] = set()  # stamps of what this process wrote, or found as it was written


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


def write_manifest(folder: Path) -> None:
    """Says of each file under the folder, by its path in it, {"bytes": n, "sha256": hexadecimal}.

    All of them are on the disk when this returns.
    """
    files = _files(folder)
    files.pop(MANIFEST, None)
    manifest = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in files.items()
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*files.values(), folder / MANIFEST, *folder.rglob("*/"), folder):
        sync(path)
    _sound.add(_stamp(folder))


def fault(folder: Path) -> str:
    """What differs from the manifest, in words; empty if nothing does.

    What this process found as it was written is read again once a file's size or time is another.
    """
    try:
        if (stamp := _stamp(folder)) in _sound:
            return ""
        if found := _fault(folder):
            return found
    except OSError as error:
        return f"it can't be read ({error})"
    _sound.add(stamp)
    return ""


def sync(path: Path) -> None:
    """Has a file, or which files a folder holds, on the disk when it returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fault(folder: Path) -> str:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return f"its {MANIFEST} can't be read ({error})"
    if PROGRESS not in expected:
        return f"its {MANIFEST} names no {PROGRESS}"
    files = _files(folder)
    if added := sorted(files.keys() - expected.keys() - RAYS - {MANIFEST}):
        return f"{added[0]} doesn't belong to it"
    with phase(f"checking {folder.name}", len(expected)) as progress:
        for name, (size, sha256) in expected.items():
            if name not in files:
                return f"{name} is missing"
            if (found := files[name].stat().st_size) != size:
                return f"{name} has {found} bytes instead of {size}"
            if sha256_of(files[name]) != sha256:
                return f"{name} was altered"
            progress.advance()
    return ""


def _files(folder: Path) -> dict[str, Path]:
    """Path in the folder → path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path for path in found}


def _stamp(folder: Path) -> int:
    """Tells the folder's files from others, or from themselves before they were written to; the
    same after the folder was renamed."""
    stats = [(name, path.stat()) for name, path in _files(folder).items()]
    return hash(tuple((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats))

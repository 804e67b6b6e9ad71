import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from starec_ray.data import store
from starec_ray.data.prepare import prepare
from starec_ray.errors import DataError, StorageError

FEW: dict[str, Any] = {
    "simulated_users": 12,
    "train_users": 4,
    "validation_users": 2,
    "test_users": 2,
}


def test_a_folder_in_use_is_left_alone_without_force(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty"):
        prepare("synthetic", out, **FEW)
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        prepare("synthetic", out, force=True, **FEW)
    assert (out / "thesis.txt").read_text() == "precious"


def test_force_replaces_a_data_folder_whole(tmp_path):
    out = tmp_path / "out"
    prepare("synthetic", out, **FEW)
    (out / "users.parquet").unlink()
    (out / "cases.parquet").write_text("torn")
    prepare("synthetic", out, force=True, seed=5, **FEW)
    assert json.loads((out / "manifest.json").read_text())["seed"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.stem for path in out.iterdir()) == sorted([*store.TABLES, "manifest"])


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ('{"name": "A web page"}', r"its manifest\.json is not one that"),
        ("[" * 100_000, r"its manifest\.json is not one that"),
        ("{half", r"its manifest\.json is not one that"),
        ('{"schema_version": 0}', "holds 'runs', which is no part of a data folder"),
    ],
)
def test_force_leaves_alone_what_is_no_data_folder_or_holds_something_else(
    manifest, reason, tmp_path
):
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    (out / "thesis.txt").write_text("precious")
    (out / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=reason):
        prepare("synthetic", out, force=True, **FEW)
    assert (out / "thesis.txt").read_text() == "precious"


def test_force_leaves_a_folder_alone_that_only_has_the_name_of_a_table(tmp_path):
    out = tmp_path / "out"
    prepare("synthetic", out, **FEW)
    (out / "cases.parquet").unlink()
    (out / "cases.parquet" / "mine").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds 'cases\.parquet', which is no part"):
        prepare("synthetic", out, force=True, **FEW)
    assert (out / "cases.parquet" / "mine").is_dir()


def test_force_replaces_a_data_folder_of_another_layout(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema_version": 0}')
    prepare("synthetic", tmp_path, force=True, **FEW)
    assert store.read_manifest(tmp_path)["seed"] == 0


def test_an_empty_folder_may_be_used(tmp_path):
    prepare("synthetic", tmp_path, **FEW)
    assert (tmp_path / "manifest.json").is_file()


def test_a_failure_while_writing_leaves_the_old_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare("synthetic", out, **FEW)
    before = (out / "cases.parquet").read_bytes()

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(store.pq, "write_table", full)
    with pytest.raises(StorageError, match=r"/out can't be written: No space left"):
        prepare("synthetic", out, force=True, seed=5, **FEW)
    assert (out / "cases.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("interruption", [OSError("Device or resource busy"), KeyboardInterrupt()])
def test_an_interrupted_exchange_leaves_the_old_folder(tmp_path, monkeypatch, interruption):
    out = tmp_path / "out"
    prepare("synthetic", out, **FEW)
    before = (out / "manifest.json").read_bytes()
    real = os.replace

    def interrupted(source, target):
        if Path(source).name == "new":
            raise interruption
        real(source, target)

    monkeypatch.setattr(store.os, "replace", interrupted)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        prepare("synthetic", out, force=True, seed=5, **FEW)
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_place_that_cannot_be_written_is_named_with_the_cause(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"/file/out can't be written: .*exists"):
        prepare("synthetic", tmp_path / "file" / "out", **FEW)
    with pytest.raises(StorageError, match=r"can't be written: .*too long"):
        prepare("synthetic", tmp_path / ("x" * 300), **FEW)


WRITER = """
import os, sys
from starec_ray.data import store
from starec_ray.data.prepare import prepare

real = os.replace
def stop(source, target):
    if {stop_before!r} in str(source):
        print("here", flush=True)
        sys.stdin.read()
    real(source, target)

store.os.replace = stop
prepare("synthetic", {out!r}, force=True, seed=5, **{few!r})
"""


@contextmanager
def writer_stopped_before(out: Path, stop_before: str) -> Iterator[subprocess.Popen]:
    """A process that writes `out`, and waits before it renames what is called so."""
    program = WRITER.format(out=str(out), stop_before=stop_before, few=FEW)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout and process.stdout.readline() == "here\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("renaming", ["/out", "/new"])
def test_what_a_killed_writer_left_goes_at_the_next_start(tmp_path, renaming):
    out = tmp_path / "out"
    prepare("synthetic", out, **FEW)
    before = (out / "manifest.json").read_bytes()
    with writer_stopped_before(out, renaming) as process:
        process.terminate()
        process.wait()
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    # Not forced: the old folder, if it was moved, is back, and still in use.
    with pytest.raises(DataError, match="is not empty"):
        prepare("synthetic", out, **FEW)
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_a_living_writer_or_that_of_another_folder_has_is_left_alone(tmp_path):
    out = tmp_path / "out"
    others = tmp_path / ".out.v2.12345678.partial"
    others.mkdir()
    prepare("synthetic", out, **FEW)
    with writer_stopped_before(out, "/out") as process:
        prepare("synthetic", out, force=True, **FEW)
        assert len(list(tmp_path.glob(".out.*.partial"))) == 2
        process.communicate("", timeout=60)
        assert process.returncode == 0
    assert json.loads((out / "manifest.json").read_text())["seed"] == 5
    assert others.is_dir()


def test_the_manifest_tells_how_the_folder_was_made(tmp_path, files, small_protocol):
    movies = "".join(f"{n}::Film {n} (1990)::Drama\n" for n in range(1, 6))
    texts = {
        "movies.dat": movies,
        "users.dat": "",
        "ratings.dat": "".join(f"{u}::{n}::4::{n}\n" for u in (1, 2) for n in (u, 2 + u)),
    }
    prepare("movielens-1m", tmp_path / "out", folder=files(texts), **small_protocol)
    manifest = store.read_manifest(tmp_path / "out")
    assert manifest["schema_version"] == store.SCHEMA_VERSION
    assert manifest["source"] == "movielens-1m"
    assert manifest["parameters"]["negatives"] == 2
    assert manifest["counts"]["cases"] == {"train": 1, "validation": 0, "test": 1}
    assert manifest["inputs"]["movies.dat"] == hashlib.sha256(movies.encode()).hexdigest()
    assert str(tmp_path) not in json.dumps(manifest)

import hashlib
import json
from typing import Any

import pytest

from starec_ray.data import store
from starec_ray.data.prepare import prepare
from starec_ray.errors import DataError

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
    (out / "leftover").write_text("")
    prepare("synthetic", out, force=True, seed=5, **FEW)
    assert json.loads((out / "manifest.json").read_text())["seed"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.stem for path in out.iterdir()) == sorted([*store.TABLES, "manifest"])


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
    with pytest.raises(OSError, match="No space"):
        prepare("synthetic", out, force=True, seed=5, **FEW)
    assert (out / "cases.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


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

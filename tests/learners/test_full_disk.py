"""A disk that is really full: a small file system of its own, and a learner that writes to it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from starec_ray.checkpoint_files import FORMAT, PROGRESS, fault, write_manifest
from starec_ray.checkpoints import Checkpoints
from starec_ray.errors import StorageError
from tests.learners.samples import local_learner, make_sequences

pytestmark = pytest.mark.engine

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Two MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={2 * MIB}", "tmpfs", place]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can't be mounted here: that takes root")
    yield place
    subprocess.run(["umount", place], check=True)


class Algorithm:
    """As much of it as is saved."""

    training_iteration = 1

    def __init__(self, learner) -> None:
        self.learner = learner

    def save_to_path(self, path: str | Path) -> str:
        self.learner.save_checkpoint(str(Path(path) / "learners"))
        (Path(path) / PROGRESS).write_text(json.dumps({"format": FORMAT}))
        write_manifest(Path(path))
        return str(path)


def test_a_checkpoint_that_does_not_fit_is_removed_and_the_one_before_is_gone_on_from(
    tiny_llama, small_disk
):
    learner = local_learner(tiny_llama)
    learner.update_sequences(make_sequences([("anchor", 20, [10])]), objective="anchor")
    algorithm, checkpoints = Algorithm(learner), Checkpoints(small_disk / "checkpoints", keep=1)
    checkpoints.save(algorithm)
    [first] = checkpoints.all()
    taken = sum(path.stat().st_size for path in first.rglob("*") if path.is_file())
    learner.freeze_anchor()  # the next holds the reference too: more than the first one tells
    other = small_disk / "other"
    free = 2 * MIB - taken
    other.write_bytes(bytes(free - taken - 64 * 1024))

    algorithm.training_iteration = 2
    with pytest.raises(StorageError, match=r"the disk is full.*iteration-00001 is whole") as told:
        checkpoints.save(algorithm)
    assert "No space left" in str(told.value.__cause__)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["iteration-00001"]
    assert not fault(first)
    learner.load_checkpoint(str(first / "learners"))

    other.unlink()
    checkpoints.save(algorithm)
    assert checkpoints.all() == [checkpoints.folder / "iteration-00002"]

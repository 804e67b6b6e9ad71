"""What `test_full_disk` runs: saves a learner's checkpoints to a disk of two MiB until it is full.

python -m tests.learners.on_a_small_disk MODEL DISK
"""

import json
import sys
from pathlib import Path

import pytest

from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.checkpoints.files import FORMAT, PROGRESS, fault, write_manifest
from starec_ray.errors import StorageError
from tests.learners.samples import local_learner, make_sequences


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


def main(model: Path, disk: Path) -> None:
    learner = local_learner(model)
    learner.update_sequences(make_sequences([("anchor", 20, [10])]), objective="anchor")
    algorithm, checkpoints = Algorithm(learner), Checkpoints(disk / "checkpoints", keep=1)
    checkpoints.save(algorithm)
    [first] = checkpoints.all()
    taken = sum(path.stat().st_size for path in first.rglob("*") if path.is_file())
    learner.freeze_anchor()  # the next holds the reference too: more than the first one tells
    other = disk / "other"
    other.write_bytes(bytes(2 * 2**20 - 2 * taken - 64 * 1024))

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


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Checkpoints of a run: whole or not there, the newest kept."""

import errno
import shutil
from pathlib import Path

import pytest

from starec_ray.checkpoints import MANIFEST, PROGRESS, Checkpoints, progress_of
from starec_ray.errors import ConfigError, StorageError


class Algorithm:
    """Saves what a checkpoint is told by; may be stopped in the middle."""

    training_iteration = 0
    stopped: BaseException | None = None

    def save_to_path(self, path: str | Path) -> str:
        Path(path).mkdir()
        if self.stopped:
            raise self.stopped
        (Path(path) / "learners").mkdir()
        (Path(path) / "learners" / "weights").write_bytes(bytes(1000))
        (Path(path) / PROGRESS).write_text("{}")
        return str(path)


def save(
    checkpoints: Checkpoints,
    iteration: int,
    score: float | None = None,
    *,
    stopped: BaseException | None = None,
) -> None:
    algorithm = Algorithm()
    algorithm.training_iteration, algorithm.stopped = iteration, stopped
    checkpoints.save(algorithm, score)


def names(checkpoints: Checkpoints) -> list[str]:
    return [path.name for path in checkpoints.all()]


def test_the_newest_are_kept_and_the_last_one_is_gone_on_from(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest(pytest.fail) is None
    for iteration in (2, 9, 10, 100):
        save(checkpoints, iteration)
    assert names(checkpoints) == ["iteration-00010", "iteration-00100"]
    assert checkpoints.newest(pytest.fail) == tmp_path / "checkpoints" / "iteration-00100"


def test_without_a_limit_all_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=0)
    for iteration in range(1, 5):
        save(checkpoints, iteration)
    assert len(checkpoints.all()) == 4


def test_the_best_is_kept_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.best() is None
    for iteration, score in enumerate([0.3, 0.5, None, 0.5, 0.1, None, None], start=1):
        save(checkpoints, iteration, score)
    assert names(checkpoints) == ["iteration-00004", "iteration-00006", "iteration-00007"]
    assert checkpoints.best() == tmp_path / "iteration-00004"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "weights"),
        RuntimeError("learner 1 failed: I/O error: No space left on device (os error 28)"),
    ],
)
def test_on_a_full_disk_the_one_before_stays_whole_and_the_error_names_it(tmp_path, error):
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(StorageError, match=r"full. there is none yet"):
        save(checkpoints, 1, stopped=error)
    save(checkpoints, 1)
    with pytest.raises(StorageError, match=r"full. .*iteration-00001 is whole.*--resume"):
        save(checkpoints, 2, stopped=error)
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-00001"]
    assert checkpoints.newest(pytest.fail) == tmp_path / "iteration-00001"


def test_what_the_disk_has_no_room_for_is_not_begun(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=900))
    with pytest.raises(StorageError, match="are free"):
        save(checkpoints, 2)
    assert names(checkpoints) == ["iteration-00001"]


def test_one_that_was_stopped_in_the_middle_is_none_and_may_be_written_again(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 2, stopped=KeyboardInterrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-00001"]
    (tmp_path / "iteration-00002.part").mkdir()  # what a kill leaves
    save(checkpoints, 2)
    assert names(checkpoints) == ["iteration-00002"]
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-00002"]


def truncated(folder: Path) -> None:
    (folder / "learners" / "weights").write_bytes(bytes(999))


def altered(folder: Path) -> None:
    (folder / "learners" / "weights").write_bytes(bytes(999) + b"1")


def missing(folder: Path) -> None:
    (folder / "learners" / "weights").unlink()


def foreign(folder: Path) -> None:
    (folder / MANIFEST).write_text("[1]")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncated, "learners/weights has 999 bytes instead of 1000"),
        (altered, "learners/weights was altered"),
        (missing, "learners/weights is missing"),
        (foreign, "its manifest.json can't be read"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_is_gone_on_from(tmp_path, damage, told):
    checkpoints = Checkpoints(tmp_path, keep=0)
    save(checkpoints, 1)
    save(checkpoints, 2)
    damage(tmp_path / "iteration-00002")
    warnings: list[str] = []
    assert checkpoints.newest(warnings.append) == tmp_path / "iteration-00001"
    assert len(warnings) == 1 and "iteration-00002" in warnings[0] and told in warnings[0]
    damage(tmp_path / "iteration-00001")
    with pytest.raises(ConfigError, match="no checkpoint can be gone on from"):
        checkpoints.newest(warnings.append)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is no whole checkpoint"):
        progress_of(tmp_path)
    (tmp_path / PROGRESS).write_text('{"iterations_done": 3}')
    with pytest.raises(ConfigError, match="has format 1, and this version reads 2"):
        progress_of(tmp_path)

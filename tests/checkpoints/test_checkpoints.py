"""Checkpoints of a run: whole or not there, its own, the newest kept."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from starec_ray.algorithm import STARec
from starec_ray.checkpoints import files
from starec_ray.checkpoints.checkpoints import SCORE, Checkpoints, is_full
from starec_ray.checkpoints.files import (
    FORMAT,
    MANIFEST,
    PROGRESS,
    fault,
    progress_of,
    write_manifest,
)
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError, StorageError

OURS = {"inputs": {"data.path": "a1"}, "settings": {"training.group_size": 8}}


class Algorithm:
    """Saves what a checkpoint is told by; may be stopped in the middle."""

    training_iteration = 0
    stopped: BaseException | None = None

    def __init__(self, identity: dict | None = None) -> None:
        self.identity = identity or OURS

    def save_to_path(self, path: str | Path) -> str:
        if self.stopped:
            raise self.stopped
        (Path(path) / "learners").mkdir()
        (Path(path) / "learners" / "weights").write_bytes(bytes(1000))
        progress = {"format": FORMAT, "identity": self.identity, "iterations_done": 0}
        (Path(path) / PROGRESS).write_text(json.dumps(progress))
        write_manifest(Path(path))
        return str(path)


def save(
    checkpoints: Checkpoints,
    iteration: int,
    score: float | None = None,
    *,
    stopped: BaseException | None = None,
    identity: dict | None = None,
) -> None:
    algorithm = Algorithm(identity)
    algorithm.training_iteration, algorithm.stopped = iteration, stopped
    checkpoints.save(algorithm, score)


def names(checkpoints: Checkpoints) -> list[str]:
    return [path.name for path in checkpoints.all()]


@pytest.fixture
def told() -> list[str]:
    """What isn't sound, as `Checkpoints` tells of it."""
    return []


def test_the_newest_are_kept_and_the_last_one_is_gone_on_from(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    for iteration in (2, 9, 10, 100):
        save(checkpoints, iteration)
    assert names(checkpoints) == ["iteration-00010", "iteration-00100"]
    assert checkpoints.newest() == tmp_path / "checkpoints" / "iteration-00100"


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
    assert checkpoints.newest() == tmp_path / "iteration-00001"


@pytest.mark.parametrize(
    ("error", "free", "full"),
    [
        (RuntimeError("learner 1 failed: No space left on device (os error 28)"), 1, True),
        (OSError(errno.ENOSPC, "auf dem Gerät ist kein Platz"), 1, True),
        (RuntimeError("Disk quota exceeded"), 1, True),
        (RuntimeError("can't write"), 0, True),
        (RuntimeError("can't write"), 1, False),
        (OSError(errno.EACCES, "Permission denied"), 1, False),
    ],
)
def test_a_full_disk_is_known_by_its_number_its_words_or_by_what_is_free(
    tmp_path, monkeypatch, error, free, full
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert is_full(error, tmp_path) == full


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
    os.utime(folder / "learners" / "weights", (1, 1))  # a clock may be too coarse to tell


def missing(folder: Path) -> None:
    (folder / "learners" / "weights").unlink()


def added(folder: Path) -> None:
    (folder / "learners" / "weights-2").touch()


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("[1]")


def empty_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")


def rescored(folder: Path) -> None:
    (folder / SCORE).write_text("{")


DAMAGES = {
    truncated: "learners/weights has 999 bytes instead of 1000",
    altered: "learners/weights was altered",
    missing: "learners/weights is missing",
    added: "learners/weights-2 doesn't belong to it",
    no_manifest: "its manifest.json can't be read",
    empty_manifest: "its manifest.json names no progress.json",
    rescored: "score.json has 1 bytes instead of 3",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_is_gone_on_from(tmp_path, damage, told):
    checkpoints = Checkpoints(tmp_path, keep=0, tell=told.append)
    save(checkpoints, 1, 0.5)
    save(checkpoints, 2, 0.5)
    damage(tmp_path / "iteration-00002")
    for _ in range(2):
        assert checkpoints.newest() == tmp_path / "iteration-00001"
    assert len(told) == 1 and "iteration-00002" in told[0] and DAMAGES[damage] in told[0]
    damage(tmp_path / "iteration-00001")
    with pytest.raises(ConfigError, match="no checkpoint can be gone on from"):
        checkpoints.newest()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_does_not_count_among_those_kept_nor_as_the_best(tmp_path, damage, told):
    checkpoints = Checkpoints(tmp_path, keep=1, tell=told.append)
    save(checkpoints, 1, 0.1)
    save(checkpoints, 2, 0.9)
    damage(tmp_path / "iteration-00002")
    save(checkpoints, 3, 0.5)
    assert checkpoints.best() == tmp_path / "iteration-00003"
    save(checkpoints, 4, 0.3)
    assert checkpoints.sound() == [tmp_path / "iteration-00003", tmp_path / "iteration-00004"]
    assert len(told) == 1 and DAMAGES[damage] in told[0]


def test_what_ray_lays_beside_the_files_does_no_harm(tmp_path, told):
    save(Checkpoints(tmp_path, keep=0), 1)
    (tmp_path / "iteration-00001" / ".metadata.json").write_text("{}")
    assert fault(tmp_path / "iteration-00001") == ""


def test_one_is_read_once_in_a_process_and_again_when_it_was_written_to(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=0)
    save(checkpoints, 1)
    read: list[Path] = []
    digest = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: read.append(path) or digest(path))
    assert checkpoints.newest() and not read
    truncated(tmp_path / "iteration-00001")
    with pytest.raises(ConfigError, match="999 bytes"):
        checkpoints.newest()


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"inputs": {}}, "data.path is no longer what it learned from"),
        ({"inputs": {"data.path": "b2"}}, "data.path is no longer what it learned from"),
        ({"settings": {"training.group_size": 4}}, "training.group_size was 4 and is 8"),
    ],
)
def test_another_runs_is_named_and_the_one_before_is_gone_on_from(tmp_path, other, why, told):
    checkpoints = Checkpoints(tmp_path / "ours", 1, OURS, told.append)
    save(checkpoints, 1)
    save(Checkpoints(tmp_path / "theirs", 1), 2, identity=OURS | other)
    shutil.copytree(tmp_path / "theirs" / "iteration-00002", tmp_path / "ours" / "iteration-00002")
    assert checkpoints.newest() == tmp_path / "ours" / "iteration-00001"
    assert len(told) == 1 and "iteration-00002 is not this run's" in told[0] and why in told[0]


def test_a_setting_that_a_checkpoint_does_not_know_yet_is_no_difference(tmp_path, told):
    save(Checkpoints(tmp_path, 1), 1, identity=OURS | {"settings": {}})
    assert Checkpoints(tmp_path, 1, OURS, told.append).newest() and not told


def test_the_algorithm_itself_refuses_a_damaged_one_before_it_changes_anything(tmp_path):
    save(Checkpoints(tmp_path, keep=0), 1)
    added(tmp_path / "iteration-00001")
    algo = STARec.__new__(STARec)
    with pytest.raises(ConfigError, match=r"weights-2 doesn't belong to it. Take another one"):
        algo.restore_from_path(tmp_path / "iteration-00001")
    assert not vars(algo)


@pytest.mark.parametrize(("anchored", "refused"), [(True, True), (False, False)])
def test_the_algorithm_itself_refuses_one_without_the_anchor_that_its_kl_needs(
    tmp_path, anchored, refused
):
    """Before the anchor is frozen there is none yet."""
    (tmp_path / PROGRESS).write_text(json.dumps({"format": FORMAT, "anchored": anchored}))
    write_manifest(tmp_path)
    algo = STARec.__new__(STARec)
    algo.config = STARecConfig().training(kl_coeff=0.01)
    went_on = pytest.raises(AttributeError, match="rollout_queue")  # there are no engines
    told = pytest.raises(ConfigError, match=r"keeps no anchor .* kl_coeff 0\. Set .*\(0\.01 now\)")
    with told if refused else went_on:
        algo.restore_from_path(tmp_path)
    assert [*vars(algo)] == ["config"]


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is no whole checkpoint"):
        progress_of(tmp_path)
    (tmp_path / PROGRESS).write_text('{"iterations_done": 3}')
    with pytest.raises(ConfigError, match="has format 1, and this version reads 4"):
        progress_of(tmp_path)


@pytest.mark.parametrize(
    "form", ["{0}/iteration-00002", "./iteration-00002", "iteration-00002/", "ours/iteration-00002"]
)
def test_one_that_is_named_by_its_path_is_gone_back_to_and_stays(tmp_path, form, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(tmp_path / "ours", keep=0)
    for iteration in (1, 2, 3):
        save(checkpoints, iteration)
    name = form.format(checkpoints.folder)
    assert checkpoints.named(name) == checkpoints.folder / "iteration-00002"
    checkpoints.go_back_to(name)
    assert names(checkpoints) == ["iteration-00001", "iteration-00002"]


@pytest.mark.parametrize("name", ["{0}/theirs/iteration-00002", "../theirs/iteration-00002", "."])
def test_what_lies_elsewhere_is_none_of_them(tmp_path, name):
    checkpoints = Checkpoints(tmp_path / "ours", keep=0)
    for folder in ("ours", "theirs"):
        save(Checkpoints(tmp_path / folder, keep=0), 2)
    with pytest.raises(ConfigError, match=r"holds no checkpoint .*; there are: iteration-00002"):
        checkpoints.go_back_to(name.format(tmp_path))
    assert names(checkpoints) == ["iteration-00002"]


def test_one_whose_removal_is_cut_off_is_none_and_goes_with_the_next(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    remove = shutil.rmtree

    def killed(folder, **options):
        if Path(folder).is_dir():
            (Path(folder) / PROGRESS).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 2)
    monkeypatch.setattr(shutil, "rmtree", remove)
    assert [path.name for path in Checkpoints(tmp_path, keep=1).all()] == ["iteration-00002"]
    save(checkpoints, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-00003"]


def test_what_a_killed_run_had_begun_does_not_take_the_room_of_the_next(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    part = tmp_path / "iteration-00002.part"
    part.mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=900 if part.exists() else 9000)
    )
    save(checkpoints, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-00003"]

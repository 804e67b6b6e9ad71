"""What learners on several nodes keep together lies where all of them can reach it."""

import math
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem
from ray.rllib.algorithms.algorithm import Algorithm

from starec_ray.algorithm import STARec
from starec_ray.run_dir import BEST_EPOCH, RunDir
from starec_ray.training.best_epoch import BestEpoch


@pytest.fixture
def algo(tmp_path):
    """One whose parts are not started: stage one's second epoch has just ended."""
    algo = STARec.__new__(STARec)
    algo._logdir = str(tmp_path / "of this machine")
    algo._storage = None
    algo.report = {}
    algo.config = SimpleNamespace(anchor_validation_cases=0, anchor_epochs=3)
    algo.anchored, algo.anchor_updates_done = False, 2
    algo.__dict__["anchor_data"] = SimpleNamespace(held_out=[0], updates=3)
    algo.kept = []

    def learners(method: str, *args, **kwargs):
        if method == "save_checkpoint":
            algo.kept.append(args[0])
        return [{"nll": 0.5}]

    algo.learners, algo._sync_weights = learners, lambda: None
    algo.best_epoch = BestEpoch(
        lambda *args, **kwargs: algo.learners(*args, **kwargs), lambda: algo.shared_folder
    )
    algo.best_epoch.score = -1.0
    return algo


def test_the_best_epoch_is_kept_in_the_run_folder(algo, tmp_path):
    run = RunDir(tmp_path / "run")
    algo.shared_folder = run.path
    algo._end_epoch()
    assert algo.kept == [str(run.best_epoch)]
    run.best_epoch.mkdir()
    assert "best_epoch" in run.holds()
    run.clear()
    assert not run.best_epoch.exists()


def test_where_the_last_epoch_can_not_be_measured_the_best_one_is_the_anchor(algo, tmp_path):
    algo.shared_folder, calls = tmp_path, []

    def learners(method: str, *args, **kwargs):
        calls.append(method)
        return [{"nll": math.nan}]

    algo.learners, algo._sync_weights = learners, lambda: calls.append("sync")
    algo.anchor_updates_done = 3  # of three
    kept = tmp_path / BEST_EPOCH
    kept.mkdir()
    algo._end_epoch()
    # The engines, which may share the learners' GPUs, wake when they get weights: after "nll".
    assert calls == ["nll", "sync", "load_checkpoint", "sync"] and not kept.exists()
    calls.clear()
    algo._end_epoch()  # where none was ever measured there is none to take
    assert calls == ["nll", "sync"]


def test_a_trial_keeps_it_in_its_folder_of_the_storage_and_plain_rllib_in_its_logdir(
    algo, tmp_path
):
    assert algo._shared_folder() == tmp_path / "of this machine"
    trial = tmp_path / "storage" / "trial_1"
    algo._storage = SimpleNamespace(
        storage_filesystem=LocalFileSystem(), trial_fs_path=str(trial), trial_working_directory="/x"
    )
    assert algo._shared_folder() == trial
    algo._storage.storage_filesystem = "an object store's"  # learners write through paths
    assert algo._shared_folder() == tmp_path / "of this machine"


def test_what_a_killed_trial_had_begun_to_save_goes_with_the_next(algo, tmp_path, monkeypatch):
    algo._storage, algo.shared_folder = "Tune's", tmp_path
    for left in (".saving-killed", "checkpoint_000001"):
        (tmp_path / left / "learners").mkdir(parents=True)

    def save(self, folder):
        return sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())

    monkeypatch.setattr(Algorithm, "save", save)
    assert algo.save() == [".saving", "checkpoint_000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_000001"]

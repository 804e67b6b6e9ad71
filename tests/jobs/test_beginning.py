"""Where a run may begin, and what is there afterwards; without any engine."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.checkpoints.store import CheckpointStore
from starec_ray.errors import ConfigError, StorageError
from starec_ray.jobs.resume import begin_afresh, check_inputs_stay, starting_point
from starec_ray.jobs.train import train
from starec_ray.run_dir import RunDir
from tests.checkpoints.test_checkpoints import OURS, names, save
from tests.tiny_recipe import tiny_recipe
from tune.sweep import BEGUN

OTHERS = OURS | {"settings": {"training.group_size": 4}}
QUIET = Console(quiet=True)


@pytest.fixture
def address(tmp_path) -> str:
    return f"file://{tmp_path}/store"


def of_run(folder: Path, address: str, identity: dict) -> tuple[RunDir, Checkpoints]:
    run, store = RunDir(folder), CheckpointStore(address, timeout_s=30.0)
    return run, Checkpoints(run.checkpoints, 2, identity, store=store)


def starts(run: RunDir, checkpoints: Checkpoints, **how: bool) -> Path | None:
    how = {"overwrite": False, "resume": False} | how
    recipe = tiny_recipe(run.path, run.path, None)
    return starting_point(run, recipe, checkpoints, QUIET, checkpoint="", **how)


def begins(run: RunDir, checkpoints: Checkpoints, **how: bool) -> None:
    begin_afresh(run, checkpoints, **({"overwrite": False, "resume": False} | how))


def test_a_storage_belongs_to_the_first_run_that_begins_with_it(tmp_path, address):
    first = of_run(tmp_path / "first", address, OURS)
    second = of_run(tmp_path / "second", address, OURS)  # the same recipe, but for its lr
    assert starts(*first) is starts(*second) is None
    begins(*first)
    (second[0].path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"checkpoints already \(none yet\)"):
        begins(*second)
    assert second[0].holds() == ["config.yaml"]
    third = of_run(tmp_path / "third", address, OTHERS)
    with pytest.raises(ConfigError, match=r"checkpoints already \(none yet\).*--overwrite"):
        starts(*third)
    with pytest.raises(ConfigError, match=r"group_size was 8 and is 4.* of its own"):
        starts(*third, resume=True)
    starts(*third, overwrite=True)
    begins(*third, overwrite=True)
    save(third[1], 1, identity=OTHERS)
    assert third[1].store.names() == names(third[1]) == ["iteration-00001"]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path, address):
    run, checkpoints = of_run(tmp_path / "run", address, OURS)
    begins(run, checkpoints)
    begins(run, checkpoints, resume=True)
    save(checkpoints, 1)
    assert checkpoints.store.names() == ["iteration-00001"]


def test_what_the_storage_refuses_leaves_the_run_that_was_to_be_replaced(
    tmp_path, address, monkeypatch
):
    run, checkpoints = of_run(tmp_path / "run", address, OURS)
    save(checkpoints, 1)

    def refuse(*args):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(CheckpointStore, "_remove", refuse)
    with pytest.raises(StorageError, match=r"removing iteration-00001 from file.* Access Denied"):
        begins(run, checkpoints, overwrite=True)
    assert names(checkpoints) == ["iteration-00001"]


def test_a_model_is_not_removed_by_the_run_that_begins_with_it(
    small_world, tiny_model, tmp_path, monkeypatch
):
    def not_asked(settings: dict) -> None:
        raise AssertionError("it starts")

    monkeypatch.setattr("starec_ray.jobs.train.start_ray", not_asked)
    run = RunDir(tmp_path / "run")
    run.model.symlink_to(tiny_model)
    recipe = tiny_recipe(small_world, run.model, None)
    with pytest.raises(ConfigError, match=r"begins with .*tiny, which it would remove"):
        train(recipe, run.path, QUIET, overwrite=True)
    assert run.holds() == ["model"]


def test_traces_and_data_are_not_removed_by_the_run_that_learns_from_them(tmp_path):
    run = RunDir(tmp_path / "run")
    inside, beside = str(run.rollouts / "a" / "t.parquet"), str(run.path / "t.parquet")
    inputs = SimpleNamespace(data_path=str(tmp_path / "data"), model_path="a/b", traces=[beside])
    check_inputs_stay(run, inputs)
    inputs.traces = ["template", f"{inside}:rank"]
    with pytest.raises(ConfigError, match=rf"begins with {inside}, which"):
        check_inputs_stay(run, inputs)
    inputs.traces, inputs.data_path = [], str(run.checkpoints / "data")
    with pytest.raises(ConfigError, match=r"begins with .*/checkpoints/data, which"):
        check_inputs_stay(run, inputs)


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_run_does_not_begin_in_the_folder_of_a_sweep(small_world, tiny_model, tmp_path, how):
    (tmp_path / BEGUN).touch()
    with pytest.raises(ConfigError, match="is the folder of a sweep: give another --run-dir"):
        train(tiny_recipe(small_world, tiny_model, None), tmp_path, QUIET, **how)
    assert [path.name for path in tmp_path.iterdir()] == [BEGUN]


def test_a_place_that_can_not_be_read_is_named(tmp_path, small_world, tiny_model):
    long = tmp_path / ("x" * 300)
    with pytest.raises(StorageError, match=r"can't be written: .*too long.* another --run-dir"):
        train(tiny_recipe(small_world, tiny_model, None), long, QUIET)

"""Where a run may begin, and what is there afterwards; without any engine."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.checkpoints.store import CheckpointStore
from starec_ray.config.identity import identity
from starec_ray.config.recipe import Recipe, build, resolved_sections, with_values
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


def starts_training(recipe: Recipe, folder: Path, monkeypatch, **how: bool) -> bool:
    """Whether a run comes to where Ray would be started."""

    class Starts(Exception): ...

    def start(settings: dict) -> None:
        raise Starts

    monkeypatch.setattr("starec_ray.jobs.train.start_ray", start)
    try:
        train(recipe, folder, QUIET, **how)
    except Starts:
        return True
    return False


@pytest.fixture
def begun(small_world, tiny_model, tmp_path, address) -> tuple[Recipe, RunDir]:
    """A run without a KL term that has saved its first iteration, here and in its storage."""
    recipe = tiny_recipe(
        small_world,
        tiny_model,
        None,
        training={"kl_coeff": 0.0},
        run={"checkpoint_storage": address},
    )
    run, resolved = RunDir(tmp_path / "run"), build(recipe.sections)
    own = identity(resolved.config.resolve(), resolved.run.metric)
    checkpoints = Checkpoints(run.checkpoints, 2, own, store=CheckpointStore(address, 30.0))
    begin_afresh(run, checkpoints, overwrite=False, resume=False)
    run.write_config(resolved_sections(resolved))
    save(checkpoints, 1, identity=identity(resolved.config))
    return recipe, run


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, ""),
        ({"training.lr": 1e-5}, ""),
        ({"training.kl_coeff": 1e-3}, r"training\.kl_coeff was 0\.0 and is 0\.001"),
        ({"run.metric": "mrr"}, r"run\.metric was 'ndcg@10' and is 'mrr'"),
        ({"training.group_size": 4}, r"training\.group_size was 16 and is 4"),
    ],
)
@pytest.mark.parametrize("where", ["here", "on another machine"])
def test_what_a_run_may_not_change_is_refused_on_another_machine_too(
    begun, tmp_path, monkeypatch, where, values, told
):
    recipe, run = begun
    changed = build(with_values(recipe.sections, values))
    folder = run.path if where == "here" else tmp_path / "elsewhere"
    with pytest.raises(ConfigError, match=told) if told else nullcontext():
        assert starts_training(changed, folder, monkeypatch, resume=True)


def test_a_damaged_configuration_of_the_run_to_resume_is_named(begun, monkeypatch):
    recipe, run = begun
    run.config.write_text("training: 3")
    with pytest.raises(ConfigError, match=r"config\.yaml doesn't hold sections"):
        starts_training(recipe, run.path, monkeypatch, resume=True)


@pytest.mark.parametrize("where", ["here", "on another machine"])
def test_a_models_folder_may_lie_elsewhere_as_a_run_goes_on(
    begun, tmp_path, tiny_model, monkeypatch, where
):
    recipe, run = begun
    moved = shutil.copytree(tiny_model, tmp_path / "renamed")
    now = build(with_values(recipe.sections, {"model.name": str(moved)}))
    folder = run.path if where == "here" else tmp_path / "elsewhere"
    assert starts_training(now, folder, monkeypatch, resume=True)
    template = moved / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ConfigError, match=r"the model's tokenizer was '\w+' and is '\w+'"):
        starts_training(build(now.sections), folder, monkeypatch, resume=True)


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

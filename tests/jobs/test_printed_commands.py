"""Commands that are printed can be pasted, whatever folders are called."""

import shlex
from pathlib import Path
from types import SimpleNamespace

from typer.testing import CliRunner

from starec_ray.cli import app
from starec_ray.config.recipe import load_recipe
from starec_ray.jobs import collapse, train
from starec_ray.jobs.collapse import way_back
from starec_ray.run_dir import RunDir
from tune import space as space_module
from tune import sweep as sweep_module

RUN = "--run-dir"


def command_of(text: str, name: str) -> list[str]:
    """The words of the printed command of that name."""
    [line] = [line for line in text.splitlines() if f" {name} " in line]
    return shlex.split(line)


def test_those_after_a_run(tmp_path, monkeypatch):
    recipe, run = tmp_path / "a recipe.yaml", RunDir(tmp_path / "a run")
    recipe.write_text("run: {iterations: 2}\n")
    monkeypatch.setattr(train, "train", lambda *_, **__: run)
    told = CliRunner().invoke(
        app, ["train", str(recipe), "lr=[[0, 1e-3], [9, 1e-4]]", RUN, str(run.path)]
    )
    again = command_of(told.output, "train")
    given = [str(recipe), "lr=[[0, 1e-3], [9, 1e-4]]", "run.iterations=4"]
    assert again[-7:] == ["train", *given, RUN, str(run.path), "--resume"]
    assert load_recipe(again[-6], again[-5:-3]).run.iterations == 4
    assert str(run.path) in command_of(told.output, "rollouts")
    assert f"{run.path}/tensorboard" in command_of(told.output, "--logdir")
    assert f"'{run.path}/training.png'" in told.output


def test_the_one_after_a_sweep(tmp_path, monkeypatch):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "a sweep"
    recipe.write_text("run: {iterations: 2}\n")
    monkeypatch.setattr(space_module, "load_space", lambda *_: None)
    monkeypatch.setattr(sweep_module, "sweep", lambda *_, **__: [])
    told = CliRunner().invoke(app, ["tune", str(recipe), "--space", "s.yaml", "--out", str(out)])
    words = command_of(told.output, "train")
    assert words[-4:] == ["train", f"{out}/best.yaml", RUN, f"{out}/best"]


def test_the_one_after_a_collapse(tmp_path, monkeypatch):
    run = RunDir(tmp_path / "a run")
    monkeypatch.setattr(collapse, "progress_of", lambda _: {})
    algo = SimpleNamespace(stage="anchor", config=SimpleNamespace(anchor_lr=1e-3))
    checkpoints = SimpleNamespace(sound=lambda: [Path("iteration-00003")])
    words = shlex.split(way_back(algo, run, checkpoints).partition("starec ")[2])
    assert words[:3] == ["train", str(run.config), "anchor.anchor_lr=0.0005"]
    assert words[3:] == [RUN, str(run.path), "--resume", "--from", "iteration-00003"]

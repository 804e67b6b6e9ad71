"""A sweep that was killed goes on, and only as it was begun."""

import pytest
from rich.console import Console

from starec_ray.config.recipe import build, with_values
from starec_ray.errors import ConfigError
from starec_ray.run_dir import RunDir
from tests.tiny_recipe import tiny_recipe
from tune import sweep as module
from tune.space import Space, SweepSettings
from tune.sweep import sweep

SPACE = Space(SweepSettings(), {"training.lr": {"choice": [1e-5, 1e-4]}})


class Killed(BaseException):
    """What ends a program in the middle."""


@pytest.fixture
def recipe(small_world, tiny_model):
    return tiny_recipe(small_world, tiny_model, None)


@pytest.fixture
def anchors(monkeypatch):
    """Sweeps without Ray that are killed in the anchor; how each of those was begun."""
    begun = []

    def train(recipe, path, console, *, resume):
        begun.append((recipe.run.iterations, resume))
        (path / "config.yaml").write_text("begun")
        raise Killed

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "start_ray", lambda settings: None)
    monkeypatch.setattr(module, "check_resources", lambda wanted: None)
    return begun


def begin(recipe, space, out, **resume):
    with pytest.raises(Killed):
        sweep(recipe, space, out, Console(quiet=True), **resume)


def test_an_anchor_that_was_killed_is_gone_on_with(recipe, anchors, tmp_path):
    begin(recipe, SPACE, tmp_path)
    begin(build(recipe.sections), SPACE, tmp_path, resume=True)
    assert anchors == [(0, False), (0, True)]


def test_a_sweep_without_iterations_is_refused_before_anything_is_written(recipe, tmp_path):
    without = build(with_values(recipe.sections, {"run.iterations": 0}))
    with pytest.raises(ConfigError, match=r"run\.iterations is 0"):
        sweep(without, SPACE, tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_a_runs_folder_is_not_mixed_with_a_sweep(recipe, tmp_path):
    run = RunDir(tmp_path)
    run.append_metrics({"iteration": 1})
    run.close()
    with pytest.raises(ConfigError, match=r"holds a run \(metrics.jsonl.*another --out"):
        sweep(recipe, SPACE, tmp_path, Console(quiet=True))
    assert not (tmp_path / "sweep.yaml").exists()


def test_a_folder_that_holds_a_sweep_is_not_begun_with_again(recipe, anchors, tmp_path):
    begin(recipe, SPACE, tmp_path)
    with pytest.raises(ConfigError, match=r"holds a sweep already.*--resume"):
        sweep(recipe, SPACE, tmp_path, Console(quiet=True))
    with pytest.raises(ConfigError, match="holds no sweep to resume"):
        sweep(recipe, SPACE, tmp_path / "other", Console(quiet=True), resume=True)


@pytest.mark.parametrize(
    ("values", "space", "told"),
    [
        ({"training.temperature": 0.5}, SPACE, "training.temperature was 1.0 and is 0.5"),
        ({"run.iterations": 99}, SPACE, "run.iterations was 24 and is 99"),
        ({}, Space(SweepSettings(num_samples=99), SPACE.fields), "num_samples was 8 and is 99"),
        ({}, Space(SPACE.settings, {}), r"space.training.lr was {'choice': .*} and is None"),
        (
            {},
            Space(SPACE.settings, SPACE.fields | {"training.kl_coeff": {"uniform": [0, 1]}}),
            r"space.training.kl_coeff was None and is {'uniform': \[0, 1\]}",
        ),
    ],
)
def test_it_goes_on_with_the_recipe_and_the_space_that_it_was_begun_with(
    recipe, anchors, tmp_path, values, space, told
):
    begin(recipe, SPACE, tmp_path)
    changed = build(with_values(recipe.sections, values))
    with pytest.raises(ConfigError, match=told):
        sweep(changed, space, tmp_path, Console(quiet=True), resume=True)


@pytest.mark.parametrize("damage", [b"run: {", b"\xff", b"[1]", b"run: 3", b""])
def test_a_damaged_description_of_it_is_named(recipe, anchors, tmp_path, damage):
    begin(recipe, SPACE, tmp_path)
    (tmp_path / module.BEGUN).write_bytes(damage)
    with pytest.raises(ConfigError, match=r"sweep\.yaml (is not YAML|doesn't hold sections)"):
        sweep(recipe, SPACE, tmp_path, Console(quiet=True), resume=True)


def test_a_cluster_of_another_size_may_go_on_with_it(recipe, anchors, tmp_path):
    begin(recipe, SPACE, tmp_path)
    larger = build(with_values(recipe.sections, {"run.ray": {"num_cpus": 99}}))
    begin(larger, SPACE, tmp_path, resume=True)


@pytest.mark.parametrize(
    "values",
    [
        {"fault_tolerance.start_timeout_s": 1200.0},
        {"learners.micro_batch_tokens": 512, "env_runners.num_env_runners": 1},
        {"run.checkpoint_storage": "file:///elsewhere"},  # of no trial
    ],
)
def test_it_goes_on_with_other_deadlines_actors_and_what_touches_no_trial(
    recipe, anchors, tmp_path, values
):
    begin(recipe, SPACE, tmp_path)
    begin(build(with_values(recipe.sections, values)), SPACE, tmp_path, resume=True)


@pytest.mark.parametrize(
    "values",
    [
        {"training.lr": 1e-6},  # of a sweep over another field; a run may change it
        {"evaluation.validation_cases": 9},
        {"run.checkpoint_every": 1},
    ],
)
def test_what_trials_are_compared_by_stays(recipe, anchors, tmp_path, values):
    space = Space(SweepSettings(), {"training.temperature": {"choice": [0.5, 1.0]}})
    begin(recipe, space, tmp_path)
    changed = build(with_values(recipe.sections, values))
    [key] = values
    with pytest.raises(ConfigError, match=rf"{key} was .* and is .*KEY=VALUE.*another --out"):
        sweep(changed, space, tmp_path, Console(quiet=True), resume=True)


@pytest.mark.parametrize("content", ['{"trial_data": [["{\\"sta', "{}", "[]", ""])
def test_a_state_that_is_not_whole_is_refused_and_nothing_touched(
    recipe, anchors, tmp_path, content
):
    begin(recipe, SPACE, tmp_path)
    state = tmp_path / module.TRIALS / "experiment_state-2026-01-31_12-00-00.json"
    state.parent.mkdir()
    state.write_text(content)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=rf"{state}: it isn't whole.*\*state-2026.*-00\.\* away"):
        sweep(recipe, SPACE, tmp_path, Console(quiet=True), resume=True)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert after.pop(tmp_path / "lock") and before.pop(tmp_path / "lock") and after == before


def test_the_anchor_of_a_sweep_leaves_the_checkpoint_storage_alone(
    recipe, anchors, tmp_path, monkeypatch
):
    stored = build(with_values(recipe.sections, {"run.checkpoint_storage": "s3://bucket/run"}))
    storages = []

    def train(recipe, *_, **__):
        storages.append(recipe.run.checkpoint_storage)
        raise Killed

    monkeypatch.setattr(module, "train", train)
    begin(stored, SPACE, tmp_path)
    assert storages == [""]

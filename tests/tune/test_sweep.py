"""A sweep on real engines: trials, one of which fails, and the same folder again."""

import pytest
import yaml
from rich.console import Console

from starec_ray.errors import ConfigError
from starec_ray.recipe import build
from tests.tiny_recipe import tiny_recipe
from tune.space import load_space
from tune.sweep import sweep

pytestmark = pytest.mark.engine

SPACE = {
    "sweep": {"num_samples": 1, "scheduler": "none"},
    # A millisecond is too short for any update: that trial fails.
    "space": {"fault_tolerance.update_timeout_s": {"grid": [300.0, 0.001]}},
}


@pytest.fixture
def recipe(small_world, tiny_model):
    return tiny_recipe(
        small_world,
        tiny_model,
        None,
        anchor={"anchor_epochs": 0},
        training={"cases_per_iteration": 2, "group_size": 4, "reflect_share": 0.0},
        env_runners={"num_env_runners": 1},
        learners={"num_learners": 1},
        run={"iterations": 2, "checkpoint_every": 0},
    )


def test_a_sweep_ends_in_the_best_recipe_tells_why_a_trial_failed_and_runs_nothing_twice(
    recipe, ray_cluster, tmp_path
):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    space = load_space(path, recipe)
    console = Console(width=200, record=True)
    good, failed = sweep(recipe, space, tmp_path / "sweep", console)
    assert (good.iterations, len(good.scores), good.cause) == (2, 2, "")
    assert good.score == pytest.approx(good.scores[-1])
    assert "update_timeout_s" in failed.cause or "0.001" in failed.cause
    assert failed.checkpoint is None

    best = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert build(best).config.update_timeout_s == 300.0
    assert (tmp_path / "sweep" / "best_model" / "model.safetensors").exists()
    assert failed.cause[:40] in console.export_text()

    with pytest.raises(ConfigError, match="--resume"):
        sweep(recipe, space, tmp_path / "sweep", console)

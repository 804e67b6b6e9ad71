"""max_staleness on real engines: the next iteration is sampled while one trains."""

import math

import pytest
from rich.console import Console

from starec_ray.train import train
from tests.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.engine

ITERATIONS = 4


def test_iterations_sampled_ahead_are_one_version_old_and_each_is_used(
    small_world, tiny_model, tmp_path, ray_cluster
):
    recipe = tiny_recipe(
        small_world,
        tiny_model,
        None,
        anchor={"num_traces": 32, "anchor_epochs": 1, "anchor_updates_per_iteration": 2},
        training={"cases_per_iteration": 4, "group_size": 4, "max_staleness": 1},
        env_runners={"num_env_runners": 1},
        learners={"num_learners": 1},
        run={"iterations": ITERATIONS, "checkpoint_every": 2, "evaluate": False},
    )
    run = train(recipe, tmp_path / "run", Console(quiet=True))

    lines = [line for line in run.read_metrics() if line["stage"] == "reinforce"]
    assert [line["iterations_done"] for line in lines] == [1, 2, 3, 4]
    assert [line["staleness"] for line in lines] == [0, 1, 1, 1]
    for line in lines:
        for name in ("ratio_mean", "logprob_gap", "truncated_fraction"):
            assert math.isfinite(line[name])
        ledger = {k.removeprefix("rollouts/"): n for k, n in line.items() if "rollouts/" in k}
        used = ledger["trained"] + ledger["skipped"] + ledger["followed_up"]
        assert ledger["asked"] + ledger["asked_again"] == ledger["finished"] + ledger["lost"]
        assert (ledger["finished"], ledger["waiting"]) == (used, 0)
    assert run.rollout_iterations() == [line["iteration"] for line in lines]
    assert not run.read_failures()  # nor any that came of ending it
    assert run.model.exists()

"""A run whose actors and driver are killed goes on, and loses and repeats nothing."""

import pyarrow.compute as pc
import pytest
import yaml

from benchmarks.chaos import KINDS, chaos
from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.data.dataset import Dataset
from starec_ray.rollouts.case_order import CaseOrder
from starec_ray.run_dir import RunDir
from tests.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.engine

CASES = 4


@pytest.fixture
def recipe(small_world, tiny_model, tmp_path):
    sections = tiny_recipe(
        small_world,
        tiny_model,
        None,
        anchor={"num_traces": 32, "anchor_epochs": 1, "anchor_updates_per_iteration": 1},
        training={"cases_per_iteration": CASES, "group_size": 4},
        env_runners={"num_env_runners": 1},
        learners={"num_learners": 1},
        run={
            "checkpoint_every": 2,
            "evaluate": False,
            "ray": {"num_cpus": 4, "object_store_memory": 100 * 2**20},
        },
    ).sections
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_what_is_killed_comes_back_and_the_run_is_that_of_one_uninterrupted(
    recipe, small_world, tmp_path
):
    found = chaos(
        recipe,
        tmp_path / "run",
        [kind for kind in KINDS if kind != "driver"],  # that one's kill comes last
        seed=1,
        pause_s=0.5,
        more_iterations=1,
        limit_s=400.0,
    )
    assert found["kills"] == 4
    assert found["finished"]
    assert found["rollouts_lost"] == 0
    assert found["rollouts_trained_twice"] == 0

    run = RunDir(tmp_path / "run")
    lines = run.read_metrics()
    assert lines[-1]["iterations_done"] == found["iterations"]
    assert [line["stage"] for line in lines] == ["anchor"] * 2 + ["reinforce"] * (len(lines) - 2)
    order = CaseOrder(Dataset.load(small_world).case_ids("train"), 0)
    for number, iteration in enumerate(range(3, len(lines) + 1)):
        asked = run.read_rollouts(iteration)
        ranked = asked.filter(pc.equal(asked["kind"], "rank"))
        assert set(ranked["case_id"].to_pylist()) == set(order.cases(number * CASES, CASES))
    assert (run.model / "model.safetensors").exists()
    assert len(Checkpoints(run.checkpoints, keep=2).all()) == 2

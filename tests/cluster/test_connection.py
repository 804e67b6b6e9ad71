"""What the cluster lacks is said at once."""

import os
import socket
import subprocess
import sys
import time

import pytest
import ray

from starec_ray.cluster import connection
from starec_ray.cluster.connection import check_resources
from starec_ray.cluster.placement import actor_bundles, total
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError
from tests.ray_nodes import free_port


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


@pytest.fixture
def listening():
    """The address of something that takes connections."""
    with socket.create_server(("", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def start_elsewhere(**variables: str | None) -> str:
    """The last line that a process of its own says as it starts Ray; None unsets a variable."""
    environment = {**os.environ, **variables}
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "from starec_ray.cluster import connection; connection.start_ray({})",
        ],
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
    )
    *_, last = process.stderr.splitlines()
    return last


def test_a_token_that_is_missing_is_told_with_what_to_do(tmp_path, listening):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    last = start_elsewhere(RAY_ADDRESS=listening, **token)
    joined = f"starec_ray.errors.ConfigError: the cluster at RAY_ADDRESS={listening}"
    assert last.startswith(joined)
    assert str(tmp_path / "token") in last and connection.TOKEN_REMEDY in last


def test_a_home_that_keeps_no_token_is_told_with_what_to_do(tmp_path):
    (tmp_path / "home").touch()  # no folder: not to be written to even by root
    unset = dict.fromkeys(["RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
    last = start_elsewhere(HOME=str(tmp_path / "home"), **unset)
    assert f"ConfigError: Ray can't keep its token at {tmp_path}/home/.ray/auth_token" in last
    assert all(name in last for name in ("set HOME", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"))


@pytest.fixture
def started(monkeypatch):
    """What Ray is started with, and how long was waited for a cluster: nothing is started."""
    given: list[dict] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **arguments: given.append(arguments))
    monkeypatch.setattr(connection, "BETWEEN_TRIES_S", 0.0)
    return given


def test_a_cluster_that_lets_no_one_in_is_told_with_what_to_do(monkeypatch, started, listening):
    def refuse(**_) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", listening)
    with pytest.raises(ConfigError, match=r"Failed to connect .*asks for another token.*AUTH_MODE"):
        connection.start_ray({})


def test_where_nothing_listens_that_is_told_before_ray_tries(monkeypatch, started):
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    told = rf"nothing answers at .* \(RAY_ADDRESS={address}\): Connection refused"
    with pytest.raises(ConfigError, match=told):
        connection.start_ray({})
    monkeypatch.setenv("RAY_ADDRESS", "no..name:6379")
    with pytest.raises(ConfigError, match=r"nothing answers at no\.\.name:6379"):
        connection.start_ray({})
    assert not started


def test_a_head_that_is_starting_is_waited_for(monkeypatch, started):
    port = int(free_port())
    servers: list[socket.socket] = []
    monkeypatch.setattr(
        time, "sleep", lambda seconds: servers.append(socket.create_server(("", port)))
    )
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    connection.start_ray({})
    assert len(started) == len(servers) == 1
    servers[0].close()


def test_an_address_of_ipv6_is_one(monkeypatch, started):
    tried = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        tried.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("RAY_ADDRESS", "[2001:db8::7]:6379")
    connection.start_ray({})
    assert tried == [("2001:db8::7", 6379)] and started


@pytest.mark.parametrize(
    "address",
    [
        "ray://10.0.0.1:10001",
        "http://10.0.0.1:8265",
        "https://host",
        "10.0.0.1",
        "2001:db8::7:6379",
        "host:port",
        "host:99999",
        ":6379",
        "host:6379 ",
    ],
)
def test_what_is_no_address_to_join_is_refused_with_the_form(monkeypatch, started, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS is '.*HOST:6379, or auto.* starec submit"):
        connection.start_ray({})
    assert not started


@pytest.mark.parametrize("address", ["", "local"])
def test_without_a_cluster_a_ray_of_its_own_gets_its_settings(monkeypatch, started, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    for name in ("PYTHONPATH", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")  # else it would be left changed
    connection.start_ray({"num_cpus": 3})
    assert started[0]["address"] == "local" and started[0]["num_cpus"] == 3


def test_auto_without_a_cluster_is_told(monkeypatch, started):
    def find(address: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(connection.services, "canonicalize_bootstrap_address", find)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match="RAY_ADDRESS=auto can't be joined: Could not find any"):
        connection.start_ray({})

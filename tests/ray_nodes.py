"""A cluster on one machine: each node by a `ray start` of its own, with an address of its own."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.util import get_node_ip_address
from ray.util.state import list_actors

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 120.0
STARTED = "Ray runtime started"
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "200",
    "RAY_ADDRESS": "",
    "RAY_AUTH_MODE": "disabled",  # else Ray wants a token as soon as this user has one
    "RAY_health_check_period_ms": "1000",  # a lost node is missed after seconds
}
# Every node listens on these; with 0 each finds a port that no other has.
AGENTS_PORTS = (
    "--dashboard-agent-listen-port",  # the head's takes jobs
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)


@dataclass(frozen=True)
class RayNode:
    """A node: the session of processes that a `ray start --block` leads."""

    process: subprocess.Popen
    log: Path

    def kill(self) -> None:
        """Ends all its processes at once, as the loss of the machine would."""
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self.process.pid:
                    process.kill()
        self.process.wait()


@dataclass(frozen=True)
class RayNodes:
    """A cluster.

    Attributes:
        nodes: the head first.
        address: where a driver joins it.
        jobs: where its job server listens.
    """

    nodes: list[RayNode]
    address: str
    jobs: str

    def actors(self, kind: str) -> list[Any]:
        """Actors of a class, those that ended too."""
        found = list_actors(address=self.jobs)
        return [a for a in found if (a.class_name or "").rpartition(".")[2] == kind]


@contextlib.contextmanager
def ray_nodes(*resources: str) -> Iterator[RayNodes]:
    """A running cluster of a node for each argument, the first one its head.

    Args:
        resources: what a node has besides two CPUs, as JSON.
    """
    host, port, jobs = get_node_ip_address(), free_port(), free_port()
    head = [*("--head", "--port", port, "--dashboard-port", jobs, "--include-dashboard", "true")]
    head += ["--ray-client-server-port", free_port()]
    address = f"{host}:{port}"
    with tempfile.TemporaryDirectory(prefix="nodes", ignore_cleanup_errors=True) as folder:
        cluster = RayNodes([], address, f"http://127.0.0.1:{jobs}")
        try:
            for number, own in enumerate(resources, 1):
                join = ["--address", address, "--node-ip-address", f"127.0.0.{number}"]
                place = Path(folder) / str(number)  # short: sockets lie in it
                node = _start(place, own, head if number == 1 else join)
                cluster.nodes.append(node)
                _wait_for(node)  # Ray gives each 30 s, on however busy a machine
            yield cluster
        finally:
            for node in reversed(cluster.nodes):
                node.kill()  # Ray drains a node for half a minute before it lets it end


def _start(place: Path, resources: str, role: list) -> RayNode:
    options = ["--block", "--num-cpus", 2, "--object-store-memory", 100 * 2**20, *role]
    for port in AGENTS_PORTS:
        options += [port, 0]
    command = [*("ray", "start", "--temp-dir", place, "--resources", resources), *options]
    log = place.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=ENVIRONMENT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return RayNode(process, log)


def _wait_for(node: RayNode) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while STARTED not in node.log.read_text():
        alive = node.process.poll() is None
        assert alive and time.monotonic() < deadline, node.log.read_text()
        time.sleep(0.1)


def free_port() -> int:
    """One that nobody listens on, nor is given to who asks for any: those lie above."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError("no port of a hundred is free")

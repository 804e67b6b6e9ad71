"""Asks every node of the cluster at once, with a deadline."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from starec_ray.doctor import probe
from starec_ray.doctor.probe import NodeFacts, NodeProbe

ANSWER_TIMEOUT_S = 120.0


@dataclass
class Node:
    """A node as Ray counts it (`resources`), and as it sees itself.

    Attributes:
        facts: None where it didn't answer.
        fault: why it didn't.
        unreachable: hosts that it can't open a connection to.
    """

    name: str
    address: str
    resources: dict[str, float]
    facts: NodeFacts | None = None
    fault: str = ""
    unreachable: list[str] = field(default_factory=list)


def survey(
    *, storage: Sequence[str], inputs: Sequence[str], model: str
) -> tuple[list[Node], dict[str, str]]:
    """(every living node, shared folder → why this process can't write there).

    Args:
        storage: folders that all nodes are to see as one.
        inputs: files to hash.
        model: as `NodeProbe.look`.
    """
    living = [node for node in ray.nodes() if node["Alive"]]
    nodes = [
        Node(n["NodeName"], n["NodeManagerAddress"], dict(n["Resources"]))
        for n in sorted(living, key=lambda n: n["NodeID"])
    ]
    if len({node.name for node in nodes}) < len(nodes):  # several on one machine
        for number, node in enumerate(nodes, 1):
            node.name = f"{node.name}#{number}"
    cloudpickle.register_pickle_by_value(probe)
    remote: Any = ray.remote(num_cpus=0)(NodeProbe)
    probes = [
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
        ).remote()
        for n in sorted(living, key=lambda n: n["NodeID"])
    ]
    try:
        with _marks(storage) as (token, faults):
            listening = _ask(nodes, [p.listen.remote() for p in probes])
            here = [n for n, port in enumerate(listening) if port is not None]
            seen = [folder for folder in storage if folder not in faults]
            looks = [
                probes[n].look.remote(
                    counted_gpus=nodes[n].resources.get("GPU", 0),
                    storage=seen,
                    token=token,
                    inputs=list(inputs),
                    model=model,
                )
                for n in here
            ]
            answering = [nodes[n] for n in here]
            for node, facts in zip(answering, _ask(answering, looks), strict=True):
                node.facts = facts
            addresses = [(nodes[n].address, listening[n]) for n in here]
            reaches = [probes[n].unreachable.remote(addresses) for n in here]
            for node, hosts in zip(answering, _ask(answering, reaches), strict=True):
                node.unreachable = hosts or []
    finally:
        cloudpickle.unregister_pickle_by_value(probe)
        for actor in probes:
            ray.kill(actor)
    return nodes, faults


def _ask(nodes: Sequence[Node], refs: Sequence[ray.ObjectRef]) -> list[Any]:
    """The answers; None, and the node's fault, where there is none in time."""
    if not refs:
        return []
    ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=ANSWER_TIMEOUT_S)
    answers: list[Any] = []
    for node, ref in zip(nodes, refs, strict=True):
        answers.append(None)
        if ref not in ready:
            node.fault = f"no answer within {ANSWER_TIMEOUT_S:.0f} s"
            continue
        try:
            answers[-1] = ray.get(ref)
        except RayError as error:
            node.fault = str(error).strip().splitlines()[-1]
    return answers


@contextmanager
def _marks(folders: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """A file of a name that no one else has in each folder, while the block lasts; also the
    faults, folder → why it couldn't be written."""
    token, faults = f".starec-doctor-{secrets.token_hex(6)}", {}
    try:
        for folder in folders:
            try:
                (Path(folder) / token).touch()
            except OSError as error:
                faults[folder] = error.strerror or str(error)
        yield token, faults
    finally:
        for folder in folders:
            for mark in Path(folder).glob(f"{token}*"):
                mark.unlink(missing_ok=True)

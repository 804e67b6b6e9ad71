"""What is wrong with a cluster, from what its nodes said: one finding a check."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from starec_ray.cluster.memory import GIB
from starec_ray.cluster.placement import fits, in_words, lacking, total
from starec_ray.doctor.survey import Node

# Of a learner's GPU, for weights and states; activations and the allocator want the rest.
LEARNER_SHARE = 0.9


@dataclass(frozen=True)
class Finding:
    """One line of the answer: "good", "warning" (a run may go on), or "bad" (it can't)."""

    check: str
    level: Literal["good", "warning", "bad"]
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a recipe wants of a cluster.

    Attributes:
        bundles: what each env runner and learner takes, under Ray's names.
        weight_bytes: of the whole model, in the run's dtype; 0 if unknown.
        runner_bytes, learner_bytes: as `cluster.memory` computes them.
        runner_gpus, learner_gpus: of each.
        shares_gpus: a learner may come onto an engine's GPU.
        gpu_memory_utilization: vLLM's share of a GPU.
        through_object_store: weights go to the runners that way.
    """

    bundles: list[dict[str, float]]
    weight_bytes: float
    runner_bytes: float
    learner_bytes: float
    runner_gpus: float
    learner_gpus: float
    num_runners: int
    num_learners: int
    shares_gpus: bool
    gpu_memory_utilization: float
    through_object_store: bool


def check_nodes(nodes: Sequence[Node]) -> Finding:
    if silent := [node for node in nodes if node.fault]:
        return Finding(
            "nodes",
            "bad",
            _each({node.name: node.fault for node in silent}),
            "look at `ray status` and the node's logs; `ray stop && ray start …` brings it back.",
        )
    there = total([node.resources for node in nodes])
    return Finding(
        "nodes",
        "good",
        f"{len(nodes)} alive: {there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs",
    )


def check_versions(nodes: Sequence[Node], here: Mapping[str, str]) -> Finding:
    """Args: here: `probe.versions()` of this process."""
    remedy = "give every node the same image or environment (`make setup`, or the Dockerfile)."
    if missing := [name for name, version in here.items() if not version]:
        return Finding("versions", "bad", f"here {', '.join(missing)} isn't installed", remedy)
    other = {}
    for node, facts in _answering(nodes):
        differing = [
            f"{name} {facts['versions'][name] or 'missing'} instead of {version}"
            for name, version in here.items()
            if facts["versions"][name] != version
        ]
        if differing:
            other[node.name] = ", ".join(differing)
    if other:
        return Finding("versions", "bad", _each(other), remedy)
    shown = ", ".join(f"{name} {version}" for name, version in here.items() if name != "code")
    return Finding("versions", "good", shown)


def check_devices(nodes: Sequence[Node]) -> Finding:
    faults, slow, kinds = {}, {}, []
    for node, facts in _answering(nodes):
        counted = node.resources.get("GPU", 0)
        if facts["gpu_fault"]:
            faults[node.name] = facts["gpu_fault"]
        elif counted > len(facts["gpus"]):
            faults[node.name] = f"Ray counts {counted:g} GPUs, torch sees {len(facts['gpus'])}"
        if node.resources.get("CPU", 0) > facts["cpus"]:
            slow[node.name] = f"{node.resources['CPU']:g} CPUs are {facts['cpus']} cores"
        kinds += [f"{size / GIB:.0f} GiB" for size in facts["gpus"]]
    if faults:
        return Finding(
            "devices",
            "bad",
            _each(faults),
            "install the driver and the CUDA variant, or start Ray with --num-gpus of what is "
            "there.",
        )
    if slow:
        return Finding(
            "devices", "warning", _each(slow), "actors take turns: fine for tests, slow for runs."
        )
    gpus = f"GPUs of {', '.join(sorted(set(kinds)))}" if kinds else "no GPUs"
    return Finding("devices", "good", f"{gpus}, as Ray counts them")


def check_object_store(nodes: Sequence[Node], wanted: Wanted | None, may_grow: bool) -> Finding:
    """A version of the weights against the stores of the nodes that actors may live on."""
    stores = {node.name: node.resources.get("object_store_memory", 0) for node in nodes}
    weights = wanted.weight_bytes if wanted and wanted.through_object_store else 0
    homes = _homes(wanted, nodes) if wanted and weights else nodes
    least = min((stores[node.name] for node in homes), default=0)
    if not homes:
        return Finding(
            "object store",
            "warning" if may_grow else "bad",
            f"a version of the weights is {_size(weights)}, and no node that has room for an actor "
            "is up",
            "look again when one is.",
        )
    if weights > least:
        return Finding(
            "object store",
            "bad",
            f"a version of the weights is {_size(weights)}, the smallest store of a node with room "
            f"for an actor {_size(least)}",
            f"ray start --object-store-memory={int(2 * weights)} on these nodes, with as large a "
            "/dev/shm; or weight_transfer: nccl.",
        )
    # Ray lays what doesn't fit in /dev/shm onto the disk: slow, and silent.
    small = {
        node.name: f"{_size(stores[node.name])}, but /dev/shm is {_size(facts['shm_bytes'])}"
        for node, facts in _answering(nodes)
        if facts["shm_bytes"] < stores[node.name]
    }
    if small:
        return Finding(
            "object store", "warning", _each(small), "give the container a larger --shm-size."
        )
    if not weights:
        return Finding("object store", "good", f"{_size(least)} or more on every node")
    if 2 * weights > least:  # the version before is there until the next one is loaded
        return Finding(
            "object store",
            "warning",
            f"two versions of the weights are {_size(2 * weights)}, the smallest store of a node "
            f"with room for an actor {_size(least)}: Ray would lay a part onto the disk",
            f"ray start --object-store-memory={int(3 * weights)} on these nodes, with as large a "
            "/dev/shm; or weight_transfer: nccl.",
        )
    return Finding(
        "object store",
        "good",
        f"{_size(least)} or more where actors have room, a version of the weights is "
        f"{_size(weights)}",
    )


def check_storage(folder: str, nodes: Sequence[Node], fault: str) -> Finding:
    """Args: fault: why this process can't write there; "" if it can."""
    remedy = "mount the same storage at the same place on every node (NFS, EFS, Filestore, Lustre)."
    if fault:
        return Finding("storage", "bad", f"{folder} can't be written to from here: {fault}", remedy)
    faults = {
        node.name: facts["storage"][folder]
        for node, facts in _answering(nodes)
        if facts["storage"].get(folder)
    }
    if faults:
        return Finding("storage", "bad", f"{folder}: {_each(faults)}", remedy)
    alone = "written to; the one node there is sees it"
    shared = f"written to and seen by {len(nodes)} nodes"
    return Finding("storage", "good", f"{folder}: {shared if len(nodes) > 1 else alone}")


def check_ports(nodes: Sequence[Node]) -> Finding:
    closed = {
        node.name: f"can't reach {', '.join(node.unreachable)}"
        for node in nodes
        if node.unreachable
    }
    if closed:
        return Finding(
            "ports",
            "bad",
            _each(closed),
            "open all TCP ports between the nodes (one security group or namespace): learners and "
            "weight transfer listen on free ports.",
        )
    return Finding("ports", "good", f"any of {len(nodes)} nodes reaches any on a free port")


def check_inputs(nodes: Sequence[Node], here: Mapping[str, str]) -> Finding:
    """Args: here: path → SHA-256 of data and traces as this process sees them, "" if it doesn't."""
    faults = {}
    for node, facts in _answering(nodes):
        wrong = [
            f"{path} {'is another file' if facts['inputs'][path] else 'is not there'}"
            for path, sha in here.items()
            if facts["inputs"][path] != sha or not sha
        ]
        if wrong:
            faults[node.name] = ", ".join(wrong)
    if faults:
        return Finding(
            "data",
            "bad",
            _each(faults),
            "put data and traces on storage that every node sees, and name them by that path.",
        )
    folders = ", ".join(sorted({str(Path(path).parent) for path in here}))
    text = f"{len(here)} files in {folders}: the same on every node"
    return Finding("data", "good", text)


def check_model(model: str, nodes: Sequence[Node]) -> Finding:
    faults = {n.name: facts["model"] for n, facts in _answering(nodes) if facts["model"]}
    if faults:
        return Finding(
            "model",
            "bad",
            f"{model}: {_each(faults)}",
            "put it on shared storage: a folder as model.name, or STAREC_CACHE (embedded models) "
            "or HF_HOME (after `hf download`) set on every node.",
        )
    return Finding("model", "good", f"{model}: there, or to be had, on every node")


def is_short(wanted: Wanted, nodes: Sequence[Node]) -> bool:
    """Some actor that is wanted has no place on the nodes that are up."""
    return _unplaced(wanted.bundles, nodes) is not None


def of_those_up(finding: Finding) -> Finding:
    """What was found good while nodes that a run needs aren't up: it says nothing of them."""
    if finding.level != "good":
        return finding
    return replace(
        finding,
        level="warning",
        text=f"{finding.text}; nodes that the recipe needs aren't up and weren't asked",
        remedy="run the doctor again when they are.",
    )


def check_wanted(wanted: Wanted, nodes: Sequence[Node], may_grow: bool) -> Iterator[Finding]:
    """What a recipe wants against what the cluster has."""
    taken, there = total(wanted.bundles), total([node.resources for node in nodes])
    short = [
        f"{taken[name]:g} {name}s are wanted and there are {there.get(name, 0):g}"
        for name in lacking(taken, there)
    ]
    grows = "the autoscaler may bring them; `ray status` tells what it does."
    if short:
        yield Finding(
            "resources",
            "warning" if may_grow else "bad",
            "; ".join(short),
            grows if may_grow else "add nodes, or take fewer or smaller env_runners and learners.",
        )
    elif homeless := _unplaced(wanted.bundles, nodes):
        yield Finding(
            "resources",
            "warning" if may_grow else "bad",
            f"enough in all, but no node has {in_words(homeless)} left for an actor that wants "
            "them together",
            grows if may_grow else "an actor lives on one node: take larger nodes or smaller ones.",
        )
    else:
        yield Finding("resources", "good", f"{in_words(taken)} are wanted, and fit the nodes")
    if wanted.weight_bytes:
        yield check_memory(wanted, nodes, may_grow)


def check_memory(wanted: Wanted, nodes: Sequence[Node], may_grow: bool) -> Finding:
    """Weights and states against the smallest GPU; without GPUs against all nodes' memory."""
    gpus = [size for _, facts in _answering(nodes) for size in facts["gpus"]]
    learner = f"a learner's weights and states take {_size(wanted.learner_bytes)}"
    if not gpus and (wanted.learner_gpus or wanted.runner_gpus):
        return Finding(
            "memory",
            "warning" if may_grow else "bad",
            "no node with a GPU is up",
            "look again when one is.",
        )
    if not gpus:
        ranks = max(1, wanted.num_learners)
        need = wanted.num_runners * wanted.runner_bytes + ranks * wanted.learner_bytes
        has = sum(facts["memory_bytes"] for _, facts in _answering(nodes))
        text = f"actors' weights and states take {_size(need)}, the nodes have {_size(has)}"
        if need <= has:
            return Finding("memory", "good", text)
        return Finding("memory", "bad", text, "a smaller model, fewer actors, or more memory.")
    least = min(gpus)
    engine = wanted.gpu_memory_utilization * least
    room = engine - wanted.runner_bytes
    if wanted.learner_gpus and wanted.learner_bytes > LEARNER_SHARE * least:
        return Finding(
            "memory",
            "bad",
            f"{learner} of the smallest GPU's {_size(least)}, and activations come on top",
            "more learners, a higher zero_stage (3), a smaller model, or kl_coeff: 0 (no anchor).",
        )
    if wanted.runner_gpus and room <= 0:
        return Finding(
            "memory",
            "bad",
            f"an engine's weights take {_size(wanted.runner_bytes)} of each GPU, of which vLLM "
            f"may use {_size(engine)}",
            "a higher tensor_parallel_size, or a smaller model.",
        )
    if wanted.shares_gpus and engine + wanted.learner_bytes > least:
        return Finding(
            "memory",
            "bad",
            f"{learner}, which stay while the engine on its GPU samples, and vLLM may use "
            f"{_size(engine)}: more than the smallest GPU's {_size(least)}",
            "a lower gpu_memory_utilization, more learners, or a GPU of their own for each.",
        )
    return Finding(
        "memory", "good", f"{learner}, an engine has {_size(room)} of each GPU for its KV cache"
    )


def _unplaced(
    bundles: Sequence[Mapping[str, float]], nodes: Sequence[Node]
) -> Mapping[str, float] | None:
    """The first bundle that finds no node when the largest are placed first; None if all do."""
    left = [dict(node.resources) for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (-b.get("GPU", 0), -b.get("CPU", 0))):
        for room in left:
            if fits(bundle, room):
                for name, amount in bundle.items():
                    room[name] = room.get(name, 0) - amount
                break
        else:
            return bundle
    return None


def _homes(wanted: Wanted, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that have room for one of the actors that put or read weights."""
    if not wanted.num_learners:  # the driver's own process learns, wherever it is
        return list(nodes)
    return [
        node for node in nodes if any(fits(bundle, node.resources) for bundle in wanted.bundles)
    ]


def _answering(nodes: Sequence[Node]) -> Iterator[tuple[Node, dict]]:
    for node in nodes:
        if node.facts is not None:
            yield node, node.facts  # type: ignore[misc]


def _each(faults: Mapping[str, str]) -> str:
    """One text of all nodes' faults; nodes that say the same are named together."""
    same: dict[str, list[str]] = {}
    for node, fault in faults.items():
        same.setdefault(fault, []).append(node)
    return "; ".join(f"{', '.join(names)}: {fault}" for fault, names in same.items())


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"

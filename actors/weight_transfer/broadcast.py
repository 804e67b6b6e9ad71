"""Weights by broadcast from learner 0 to the vLLM workers of all env runners, by vLLM's own engine
of weight transfer: "nccl" between GPUs; "gloo" is the same between CPUs.

The group of sender and workers is kept from version to version, and made anew when an env runner
has joined, left or restarted.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from actors.weight_transfer.base import (
    Answers,
    CallLearners,
    CallRunners,
    Layout,
    WeightTransfer,
)
from starec_ray.errors import TransferError

NCCL_MEETING_S = 300.0  # vLLM's own deadline for members that meet, which can't be set
SLACK_S = 30.0  # a runner that hangs is found, and the group given up, before the learners are


@dataclass(frozen=True)
class Group:
    """Learner 0, rank 0, and the workers of some env runners, ranks 1 …"""

    backend: str
    host: str
    port: int
    world_size: int
    members: tuple[int, ...]  # env runners, in the order of ranks
    identity: str
    timeout_s: float


@dataclass(frozen=True)
class BroadcastTicket:
    """Makes a runner's workers receive one version while the sender sends it."""

    version: int
    group: Group
    rank_offset: int  # of the runner's first worker
    layout: tuple[Layout, ...]

    def load(self, llm: Any) -> dict[str, float]:
        start = time.perf_counter()
        llm.collective_rpc("join_transfer_group", args=(asdict(self.group), self.rank_offset))
        joined = time.perf_counter()
        llm.start_weight_update()
        llm.update_weights({"update_info": _update_info(self.layout)})
        llm.finish_weight_update()
        return {"join": joined - start, "load": time.perf_counter() - joined}


class BroadcastPublisher:
    """Learner side, on rank 0: sends every tensor to the group, or raises TransferError."""

    def __init__(self, group: Group, layout: tuple[Layout, ...]) -> None:
        self._group = group
        self._layout = layout

    def publish(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        try:
            engine = _sender(self._group)
            engine.source = _source(named_tensors, self._layout)
            if self._group.backend == "nccl":
                torch.cuda.synchronize()  # vLLM packs on streams that don't wait for this one
            engine.send_weights()
        except Exception as error:  # a receiver is gone; this learner is as well as before
            close_senders()
            raise TransferError(f"weights of version {version} weren't sent: {error!r}") from error


@dataclass(frozen=True)
class BroadcastPublication:
    """The weights that the learners hold until their next update."""

    version: int
    learners: CallLearners
    transfer: "BroadcastTransfer"

    def deliver(self, runners: Sequence[int], call: CallRunners) -> Answers:
        return self.transfer.send(self.version, self.learners, runners, call)


class BroadcastTransfer(WeightTransfer):
    """Driver side: keeps the group, and has both sides meet.

    Args:
        backend: "nccl" or "gloo".
        workers_per_runner: vLLM's workers in one env runner.
        timeout_s: deadline of one broadcast, in seconds.
    """

    def __init__(self, backend: str, workers_per_runner: int, timeout_s: float) -> None:
        self._backend = backend
        self._workers = workers_per_runner
        self._timeout_s = timeout_s
        self._patience_s = max(timeout_s, NCCL_MEETING_S) if backend == "nccl" else timeout_s
        self._group: Group | None = None
        self._layout: tuple[Layout, ...] = ()

    def publish(self, learners: CallLearners, version: int) -> BroadcastPublication:
        return BroadcastPublication(version, learners, self)

    def send(
        self, version: int, learners: CallLearners, runners: Sequence[int], call: CallRunners
    ) -> Answers:
        """Broadcasts to these env runners, of whom those that don't answer are left out.

        One that is lost in the middle ends it for all of them.

        Raises:
            DeadlineError: if the learners failed or didn't finish in time.
            TransferError: if they couldn't send though no runner has failed.
        """
        identities = call("transfer_group", {runner: {} for runner in runners})
        present = {r: i for r, i in identities.items() if not isinstance(i, Exception)}
        failed = {r: i for r, i in identities.items() if isinstance(i, Exception)}
        if not present:
            return failed
        group = self._group_of(present, learners)
        self._layout = self._layout or tuple(Layout(*t) for t in learners("weight_layout")[0])
        requests = {
            runner: {"ticket": BroadcastTicket(version, group, 1 + i * self._workers, self._layout)}
            for i, runner in enumerate(group.members)
        }
        self._group = None  # until it is known to work
        with ThreadPoolExecutor(max_workers=1) as sender:
            publisher = BroadcastPublisher(group, self._layout)
            sent = sender.submit(
                learners,
                "publish_weights",
                version,
                publisher,
                timeout_s=self._patience_s + SLACK_S,
            )
            answers = call("load_weights", requests)
            lost = any(isinstance(answer, Exception) for answer in answers.values())
            try:
                sent.result()
            except TransferError:
                if not lost:
                    raise
        if not lost:
            self._group = group
        return failed | answers

    def _group_of(self, present: dict[int, Any], learners: CallLearners) -> Group:
        members = tuple(present)
        kept = self._group
        if kept and kept.members == members and set(present.values()) == {kept.identity}:
            return kept
        host, port = learners("free_address")[0]
        world_size = 1 + len(members) * self._workers
        identity = uuid.uuid4().hex
        return Group(self._backend, host, port, world_size, members, identity, self._timeout_s)


_senders: dict[str, Any] = {}  # vLLM's sending engine of the group that this process is in


def _sender(group: Group) -> Any:
    """This process's engine for the group; another group's is closed."""
    if group.identity not in _senders:
        close_senders()
        _senders[group.identity] = _open_sender(group)
    return _senders[group.identity]


def close_senders() -> None:
    """Leaves the group that this process sends to, if there is one."""
    for engine in _senders.values():
        engine.shutdown()
    _senders.clear()


def _open_sender(group: Group) -> Any:
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    from actors.weight_transfer.gloo import GlooTrainerInitInfo

    where = (group.host, group.port, group.world_size)
    if group.backend == "nccl":
        # vLLM puts a thread that has set no stream onto one of its own, for good.
        torch.cuda.set_stream(torch.cuda.current_stream())
        info = NCCLTrainerInitInfo(*where, rank=0)
    else:
        info = GlooTrainerInitInfo(*where, rank=0, timeout_s=group.timeout_s)
    return WeightTransferTrainerFactory.trainer_init(
        info,
        client=_DriverCallsTheRunners(),
        source=_source(iter(()), ()),
    )


class _DriverCallsTheRunners:
    """vLLM's sender would call the receiving side itself; here the driver does."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def _source(named_tensors: Iterator[tuple[str, Tensor]], layout: tuple[Layout, ...]) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class OneRound(WeightSource):
        """The tensors of one version, read once."""

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(tensor.name, tensor.dtype, tensor.shape) for tensor in layout]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return named_tensors

    return OneRound()


def _update_info(layout: tuple[Layout, ...]) -> dict[str, list]:
    return {
        "names": [tensor.name for tensor in layout],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in layout],
        "shapes": [list(tensor.shape) for tensor in layout],
    }

"""Weights through Ray's object store: works on every machine, and a restarted runner reads the
newest version without any group to join."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import OwnerDiedError
from torch import Tensor

from actors.weight_transfer.base import (
    Answers,
    CallLearners,
    CallRunners,
    Layout,
    WeightTransfer,
)
from starec_ray.errors import WeightsLostError

CHUNK_BYTES = 2**28  # what tensor-parallel workers are sent at a time


@dataclass(frozen=True)
class ObjectStoreTicket:
    """A version in the object store: uint8 [bytes] for each tensor, in the order of `index`."""

    version: int
    buffers: ray.ObjectRef
    index: tuple[Layout, ...]
    seconds: dict[str, float]
    timeout_s: float

    def load(self, llm: Any) -> dict[str, float]:
        """
        Raises:
            WeightsLostError: the learner that put them there is dead.
        """
        start = time.perf_counter()
        buffers = self._buffers()  # before the engine lets its weights go
        llm.start_weight_update()
        for chunk in self._chunks(buffers):
            llm.update_weights({"update_info": {"named_tensors": chunk}})
        llm.finish_weight_update()
        return {**self.seconds, "load": time.perf_counter() - start}

    def _buffers(self) -> list[np.ndarray]:
        try:
            return ray.get(self.buffers, timeout=self.timeout_s)
        except OwnerDiedError as error:  # learner 0 owns them, and took them along
            raise WeightsLostError(
                f"the weights of version {self.version} are gone: {str(error).splitlines()[0]}"
            ) from error

    def _chunks(self, buffers: Sequence[np.ndarray]) -> Iterator[list[tuple[str, Tensor]]]:
        chunk: list[tuple[str, Tensor]] = []
        size = 0
        for name, tensor in self._tensors(buffers):
            chunk.append((name, tensor))
            size += tensor.numel() * tensor.element_size()
            if size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
        yield chunk

    def _tensors(self, buffers: Sequence[np.ndarray]) -> Iterator[tuple[str, Tensor]]:
        """Views of shared memory: no copy is made, and none may be written to."""
        for layout, buffer in zip(self.index, buffers, strict=True):
            with warnings.catch_warnings():
                # Not writable by design: vLLM copies out of it.
                warnings.filterwarnings("ignore", message=".*not writable")
                flat = torch.from_numpy(buffer)
            yield layout.name, flat.view(layout.dtype).view(layout.shape)


class ObjectStorePublisher:
    """Learner side: copies each tensor once and puts all of them as one object.

    Args:
        timeout_s: how long a runner may wait for the object.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def publish(
        self, named_tensors: Iterator[tuple[str, Tensor]], version: int
    ) -> ObjectStoreTicket:
        start = time.perf_counter()
        buffers: list[np.ndarray] = []
        index: list[Layout] = []
        for name, tensor in named_tensors:
            flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy()
            buffers.append(flat.copy() if tensor.is_cpu else flat)  # from a GPU it is one already
            index.append(Layout(name, tensor.dtype, tuple(tensor.shape)))
        gathered = time.perf_counter()
        reference = ray.put(buffers)
        seconds = {"gather": gathered - start, "put": time.perf_counter() - gathered}
        return ObjectStoreTicket(version, reference, tuple(index), seconds, self._timeout_s)


@dataclass(frozen=True)
class ObjectStorePublication:
    """A version that lies in the object store as long as this is kept."""

    ticket: ObjectStoreTicket

    @property
    def version(self) -> int:
        return self.ticket.version

    def deliver(self, runners: Sequence[int], call: CallRunners) -> Answers:
        return call("load_weights", {runner: {"ticket": self.ticket} for runner in runners})


class ObjectStoreTransfer(WeightTransfer):
    """Rank 0 puts the weights as one object, which every runner reads.

    Args:
        timeout_s: deadline of one runner's reading, in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def publish(self, learners: CallLearners, version: int) -> ObjectStorePublication:
        publisher = ObjectStorePublisher(self._timeout_s)
        tickets = learners("publish_weights", version, publisher)
        return ObjectStorePublication(tickets[0])

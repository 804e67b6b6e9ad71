"""Weights through Ray's object store: works on every machine, and a restarted runner reads the
newest version without any group to join."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor

from actors.weight_transfer.base import WeightTransfer

READ_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Layout:
    """What the bytes of one tensor mean: Hugging Face name, dtype, shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ObjectStoreTicket:
    """A version in the object store: uint8 [bytes] for each tensor, in the order of `index`."""

    version: int
    buffers: ray.ObjectRef
    index: tuple[Layout, ...]
    seconds: dict[str, float]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Views of shared memory: no copy is made, and none may be written to."""
        buffers = ray.get(self.buffers, timeout=READ_TIMEOUT_S)
        for layout, buffer in zip(self.index, buffers, strict=True):
            with warnings.catch_warnings():
                # Not writable by design: vLLM copies out of it.
                warnings.filterwarnings("ignore", message=".*not writable")
                flat = torch.from_numpy(buffer)
            yield layout.name, flat.view(layout.dtype).view(layout.shape)


class ObjectStoreTransfer(WeightTransfer):
    """Copies each tensor once and puts all of them as one object, which every runner reads."""

    def publish(
        self, named_tensors: Iterator[tuple[str, Tensor]], version: int
    ) -> ObjectStoreTicket:
        start = time.perf_counter()
        buffers: list[np.ndarray] = []
        index: list[Layout] = []
        for name, tensor in named_tensors:
            flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
            buffers.append(flat.numpy().copy())
            index.append(Layout(name, tensor.dtype, tuple(tensor.shape)))
        gathered = time.perf_counter()
        reference = ray.put(buffers)
        seconds = {"gather": gathered - start, "put": time.perf_counter() - gathered}
        return ObjectStoreTicket(version, reference, tuple(index), seconds)

"""Weights through Ray's object store: works on every machine, and a restarted runner reads the
newest version without any group to join."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor

from actors.weight_transfer.base import WeightTransfer

ALIGNMENT = 64  # bytes; a tensor's view of the buffer must begin where its dtype may begin
READ_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Packed:
    """One tensor's place in the buffer: Hugging Face name, dtype, shape, offset in bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class ObjectStoreTicket:
    """A version in the object store: one buffer, uint8 [bytes], and where each tensor lies."""

    version: int
    buffer: ray.ObjectRef
    index: tuple[Packed, ...]
    seconds: dict[str, float]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Views of the shared buffer: no copy is made, and none may be written to."""
        shared = ray.get(self.buffer, timeout=READ_TIMEOUT_S)
        # Not writable by design: vLLM copies out of it.
        whole = torch.frombuffer(shared, dtype=torch.uint8)
        for entry in self.index:
            count = int(np.prod(entry.shape, dtype=np.int64)) * entry.dtype.itemsize
            piece = whole[entry.offset : entry.offset + count]
            yield entry.name, piece.view(entry.dtype).view(entry.shape)


class ObjectStoreTransfer(WeightTransfer):
    """Packs all tensors in one pass into one buffer, put once; every runner reads the same."""

    def publish(
        self, named_tensors: Iterator[tuple[str, Tensor]], version: int
    ) -> ObjectStoreTicket:
        start = time.perf_counter()
        pieces: list[np.ndarray] = []
        index: list[Packed] = []
        offset = 0
        for name, tensor in named_tensors:
            flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
            index.append(Packed(name, tensor.dtype, tuple(tensor.shape), offset))
            size = -(-flat.numel() // ALIGNMENT) * ALIGNMENT
            piece = np.empty(size, np.uint8)
            piece[: flat.numel()] = flat.numpy()
            pieces.append(piece)
            offset += size
        buffer = np.concatenate(pieces)
        gathered = time.perf_counter()
        reference = ray.put(buffer)
        seconds = {"gather": gathered - start, "put": time.perf_counter() - gathered}
        return ObjectStoreTicket(version, reference, tuple(index), seconds)

"""How a process gets its memory, and what of it is searched for garbage."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 2**28
ONEDNN_KERNELS = 64


def keep_few_kernels() -> None:
    """Bounds what oneDNN keeps: a kernel for each shape of a batch that it met, 1,024 by default.

    Batches have ever new shapes: memory would grow for hundreds of iterations. A value that the
    environment already has stands. Call before the first product of matrices.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ONEDNN_KERNELS))


def keep_freed_memory() -> None:
    """Lets the allocator keep what tensors give back, instead of returning it to the system.

    By default each large tensor is mapped anew and its pages come one by one on first touch: a
    quarter of an update's time on a CPU. Does nothing where the allocator isn't glibc's. Call
    before the first large tensor.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_TOP_PAD, TOP_PAD_BYTES)


@contextmanager
def without_garbage_search() -> Iterator[None]:
    """What the block imports is here to stay: it isn't searched for garbage, now or later.

    Python would search it again and again while a large library is imported, and vLLM has all of
    it searched five times more as an engine starts.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

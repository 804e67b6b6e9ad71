"""How weights travel from the learners to the env runners: one interface, an engine a file."""

from actors.weight_transfer.base import WeightTransfer
from actors.weight_transfer.object_store import ObjectStoreTransfer

__all__ = ["ObjectStoreTransfer", "WeightTransfer", "make_transfer"]


def make_transfer(name: str) -> WeightTransfer:
    """The engine of this name: "object_store" works everywhere, "nccl" between GPUs."""
    if name == "object_store":
        return ObjectStoreTransfer()
    from actors.weight_transfer.nccl import NCCLTransfer  # imports vLLM's GPU engine

    return NCCLTransfer()

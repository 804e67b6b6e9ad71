"""Which engine of weight transfer a configuration asks for."""

from typing import Any

from actors.weight_transfer.base import WeightTransfer
from actors.weight_transfer.broadcast import BroadcastTransfer
from actors.weight_transfer.object_store import ObjectStoreTransfer

BROADCASTS = ("nccl", "gloo")
WEIGHT_TRANSFERS = ("object_store", *BROADCASTS)


def weight_transfer(config: Any) -> WeightTransfer:
    """The engine by `config.weight_transfer`."""
    if config.weight_transfer in BROADCASTS:
        return BroadcastTransfer(
            config.weight_transfer, config.tensor_parallel_size, config.transfer_timeout_s
        )
    return ObjectStoreTransfer(config.transfer_timeout_s)

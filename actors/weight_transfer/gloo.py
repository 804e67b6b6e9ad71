"""vLLM's NCCL engine of weight transfer, with gloo in NCCL's place: for CPUs."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)


class GlooGroup:
    """A process group beside torch's default one. Collective: all ranks make it together.

    Args:
        timeout_s: of the meeting, and of one tensor's broadcast.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int, timeout_s: float) -> None:
        timeout = timedelta(seconds=timeout_s)
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=timeout)
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, timeout)

    def broadcast(self, tensor: Tensor) -> None:
        """From rank 0 to all others, in place."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        self._group.shutdown()


class GlooWeightTransferEngine(NCCLWeightTransferEngine):
    """The receiving side, in vLLM's worker."""

    gloo: GlooGroup | None = None
    timeout_s: float  # set by who joins

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        assert init_info.master_address is not None and init_info.master_port is not None
        self.gloo = GlooGroup(
            init_info.master_address,
            init_info.master_port,
            self.parallel_config.rank + init_info.rank_offset,
            init_info.world_size,
            self.timeout_s,
        )

    def update_weights(self, update_info: dict) -> None:
        # The base class waits for an accelerator then.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        if self.gloo is None:
            raise RuntimeError("weights were sent before the group was joined.")
        model: Any = self.model
        tensors = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        for name, dtype, shape in tensors:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            self.gloo.broadcast(tensor)
            model.load_weights([(name, tensor)])

    def shutdown(self) -> None:
        if self.gloo is not None:
            self.gloo.destroy()
            self.gloo = None


@dataclass
class GlooTrainerInitInfo(NCCLTrainerInitInfo):
    """Where the group meets, and how long it waits."""

    backend: ClassVar[str] = "gloo"
    timeout_s: float = 120.0


class GlooTrainerWeightTransferEngine(NCCLTrainerWeightTransferEngine):
    """The sending side, in learner 0."""

    init_info_cls = GlooTrainerInitInfo
    gloo: GlooGroup

    @classmethod
    def trainer_init(
        cls,
        init_info: NCCLTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        assert source is not None and isinstance(init_info, GlooTrainerInitInfo)
        engine = cls(client=client, source=source, is_sender=init_info.is_sender, packed=False)
        engine.gloo = GlooGroup(
            init_info.master_address,
            init_info.master_port,
            0,
            init_info.world_size,
            init_info.timeout_s,
        )
        return engine

    def _broadcast(self, source: WeightSource, meta: list) -> None:
        for _, tensor in self._checked_iter(source, meta):
            self.gloo.broadcast(tensor.contiguous())

    def shutdown(self) -> None:
        self.gloo.destroy()


WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerWeightTransferEngine)

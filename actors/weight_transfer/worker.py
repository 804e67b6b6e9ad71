"""What is added to vLLM's worker: engines of weight transfer, the group that it is in, and what
else is asked of all workers of an engine."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.v1.sample import sampler


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """There is nothing to join."""


@dataclass
class NamedTensors(WeightTransferUpdateInfo):
    """Some of the model's tensors, whole, under Hugging Face's names."""

    named_tensors: list[tuple[str, Tensor]]


class ObjectStoreEngine(WeightTransferEngine[NoInitInfo, NamedTensors]):
    """Loads tensors that are at hand."""

    init_info_cls = NoInitInfo
    update_info_cls = NamedTensors

    def init_transfer_engine(self, init_info: NoInitInfo) -> None: ...

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class waits for an accelerator then, which not every machine has.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NamedTensors) -> None:
        model: Any = self.model
        model.load_weights(update_info.named_tensors)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None: ...


class WorkerExtension:
    """Methods that `LLM.collective_rpc` finds on every worker (vLLM's `worker_extension_cls`)."""

    _group_identity: str | None = None

    def transfer_group(self) -> str | None:
        """The identity of the group of senders and receivers that this worker is in."""
        return self._group_identity

    def join_transfer_group(self, group: dict[str, Any], rank_offset: int) -> None:
        """Joins a `broadcast.Group`, unless it is the worker's already. Collective.

        `rank_offset` is the place of this env runner's first worker in the group.
        """
        worker: Any = self
        if self._group_identity == group["identity"]:
            return
        self._group_identity = None
        worker.weight_transfer_engine.shutdown()
        settings = {"packed": True} if group["backend"] == "nccl" else {}
        worker.weight_transfer_engine.timeout_s = group["timeout_s"]
        worker.init_weight_transfer_engine(
            {
                "master_address": group["host"],
                "master_port": group["port"],
                "rank_offset": rank_offset,
                "world_size": group["world_size"],
                **settings,
            }
        )
        self._group_identity = group["identity"]

    def leave_out_ranks(self) -> None:
        """Has vLLM not count how many tokens are likelier than each that it sampled: it does
        wherever log-probs are asked for, takes a CPU long, and nobody asks for it here."""
        of_vllm: Any = sampler
        of_vllm.batched_count_greater_than = no_ranks

    def seed_sampling(self, seed: int) -> None:
        """Seeds the generator that requests without a seed of their own draw from."""
        torch.manual_seed(seed)

    def repack_weights(self) -> None:
        """On a CPU a reload leaves behind the packed copy of a head tied to the embedding, and
        leaves experts unpacked."""
        worker: Any = self
        if worker.device.type != "cpu":
            return
        model = worker.model_runner.get_model()
        head = getattr(model, "lm_head", None)
        if model.config.tie_word_embeddings and head is not None:
            head.quant_method.process_weights_after_loading(head)
        for layer in model.modules():
            if kernel := getattr(getattr(layer, "quant_method", None), "moe_kernel", None):
                kernel.fused_experts.process_weights_after_loading(layer)


def no_ranks(logprobs_RV: Tensor, own_R1: Tensor) -> Tensor:
    """Zeros in the place of ranks, int64 [R]."""
    return own_R1.new_zeros(len(own_R1), dtype=torch.int64)


WeightTransferEngineFactory.register_engine("object_store", ObjectStoreEngine)
WeightTransferEngineFactory.register_engine(
    "gloo", "actors.weight_transfer.gloo", "GlooWeightTransferEngine"
)

"""A learner of RLlib's LearnerGroup that trains a language model with DeepSpeed.

Methods marked `collective` are called on all learners at once: they work together, and one alone
would wait for the others. Tables are checked before that starts, on all learners alike, so that a
bad table is an error everywhere and a hang nowhere.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
import torch.distributed as dist
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from torch import Tensor

from learners.batching import MicroBatch, Plan, plan
from learners.collective import collective
from learners.deepspeed_config import deepspeed_config, prepare_process
from learners.groups import COMPONENTS
from learners.logprobs import ReplyScorer
from learners.metrics import BatchStats
from learners.objectives import ANCHOR, Objective, token_loss
from learners.optimizer_state import check_all_wrote, load_optimizer, save_optimizer
from learners.probe import check_packed_scores
from learners.trainable import check_window
from learners.weights import (
    FrozenWeights,
    load_language_model,
    named_tensors,
    save_model,
    weight_layout,
)
from starec_ray.checkpoints.files import REFERENCE
from starec_ray.errors import ConfigError, DataError
from starec_ray.files import put_in_place

OBJECTIVES = ("anchor", "grpo")
COUNTERS = "counters.json"
OPTIMIZER = "optimizer"


def lr_at(lr: float | Sequence[Sequence[float]], steps: int) -> float:
    """The learning rate after so many optimiser steps (0 …): a number, or [[steps, value], …] with
    straight lines between, and the last value beyond them."""
    if isinstance(lr, int | float):
        return lr
    places, values = zip(*lr, strict=True)
    return float(np.interp(steps, places, values))


class Publisher(Protocol):
    """Takes weights to where they are used."""

    def publish(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> Any:
        """Reads all tensors, as `weights.named_tensors` gives them; returns a handle that Ray can
        send to the driver.

        It runs on rank 0 alone. A STARecError of its own leaves the learners as they are, any
        other ends them.
        """


class DeepSpeedLearner(TorchLearner):
    """Trains one language model with ZeRO stage 1, 2 or 3, on CPUs or GPUs.

    Works as RLlib's local learner (`num_learners=0`) and as one of several.
    """

    config: Any  # an AlgorithmConfig with this system's fields
    _device: Any

    def build(self) -> None:
        """Loads the model and starts DeepSpeed. Collective."""
        if self._is_built:
            return
        config = self.config
        self._device = prepare_process(
            num_cpus=max(1, int(config.num_cpus_per_learner)),
            use_gpu=config.num_gpus_per_learner > 0,
        )
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        import deepspeed

        settings = deepspeed_config(config)
        self.model = load_language_model(config, settings)
        scorer = ReplyScorer(self.model)
        optimizer = torch.optim.AdamW(
            scorer.parameters(), lr=config.anchor_lr, weight_decay=config.weight_decay, fused=True
        )
        self.engine, *_ = deepspeed.initialize(
            model=scorer, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.objective = Objective(
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_coeff=config.kl_coeff,
            ratio_cap=config.ratio_cap,
            off_policy=config.max_staleness > 0,
        )
        self.reference: FrozenWeights | None = None
        self.counters = {
            "stage_steps": 0,
            "skipped_steps": 0,
            "rollouts_trained": 0,  # all that made these weights
            "weight_version": 0,
        }
        self._try_out()
        self._is_built = True

    @torch.no_grad()
    def _try_out(self) -> None:
        """Checks the model's scores as an update would make them."""
        self.engine.eval()
        self.model.train()
        check_window(self.model.config, self.config.max_model_len)
        check_packed_scores(
            lambda micro_batch: self._logprobs(self._to_device(micro_batch), temperature=1.0),
            self.model.config.get_text_config().vocab_size,
            self.model.dtype,
            self.model.config.model_type,
        )
        self.engine.eval()

    @collective
    def update_sequences(self, sequences: pa.Table, *, objective: str) -> dict[str, float]:
        """One optimiser step on the whole table (SEQUENCES schema), of which each learner takes
        its share; returns the metrics of `learners.metrics`, the same on all learners.

        `objective` sets the learning rate and which rows may come: "anchor" takes the anchor's
        traces, "grpo" rollouts and traces. A step whose gradient isn't finite is left out, on
        all learners, and counted in `skipped_steps`.
        """
        start = time.perf_counter()
        if objective not in OBJECTIVES:
            raise ConfigError(f"Unknown objective {objective!r}: use {' or '.join(OBJECTIVES)}.")
        batch = self._plan(sequences)
        if objective == "anchor" and any(
            batch.component_tokens[name] for name in COMPONENTS if name != "anchor"
        ):
            raise DataError("The anchor objective learns from traces: rollouts are in the table.")
        micro_batches = [self._to_device(m) for m in batch.micro_batches]
        references = self._reference_logprobs(micro_batches, objective)
        lr = self._set_learning_rate(objective)

        weights = torch.tensor(
            [1 / max(1, batch.component_tokens[name]) for name in COMPONENTS], device=self.device
        )
        stats = BatchStats(self.device)
        self.engine.train()
        last = len(micro_batches) - 1
        for i, (tensors, reference_N) in enumerate(zip(micro_batches, references, strict=True)):
            logprobs_N, entropy_N = self._score(tensors, self.config.temperature)
            loss, token_stats = token_loss(
                self.objective,
                logprobs_N=logprobs_N,
                entropy_N=entropy_N,
                components_N=tensors["components"],
                advantages_N=tensors["advantages"],
                sampled_N=tensors["logprobs"],
                reference_N=reference_N,
                component_weights=weights,
            )
            self.engine.set_gradient_accumulation_boundary(i == last)
            # DeepSpeed averages the gradients over the learners; theirs are parts of one sum.
            self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
            self.engine.step()
            stats.add(token_stats)
        applied = self.engine.was_step_applied()
        self.counters["stage_steps" if applied else "skipped_steps"] += 1
        if applied:
            learned = pc.sum(pc.not_equal(sequences["component"], "anchor")).as_py()
            self.counters["rollouts_trained"] += learned

        metrics = stats.reduce(batch, kl_coeff=self.config.kl_coeff)
        seconds = time.perf_counter() - start
        return {
            **metrics,
            "grad_norm": float(self.engine.get_global_grad_norm()),
            "lr": lr,
            "skipped": float(not applied),
            "skipped_steps": float(self.counters["skipped_steps"]),
            "rollouts_trained": float(self.counters["rollouts_trained"]),
            "micro_batches": float(len(micro_batches)),
            "seconds": seconds,
            "tokens_per_second": batch.tokens / seconds,
        }

    @collective
    def nll(self, sequences: pa.Table) -> dict[str, float]:
        """The negative log-likelihood of the replies, nats a token, at temperature 1; no update.

        Returns {"nll": …, "reply_tokens": …} over the whole table.
        """
        batch = self._plan(sequences)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.engine.eval()
        with torch.no_grad():
            for micro_batch in batch.micro_batches:
                logprobs_N = self._logprobs(self._to_device(micro_batch), temperature=1.0)
                total -= logprobs_N.double().sum()
        dist.all_reduce(total)
        tokens = sum(batch.component_tokens.values())
        return {"nll": total.item() / tokens, "reply_tokens": float(tokens)}

    @collective
    def freeze_anchor(self) -> None:
        """Ends the anchor stage: the weights of now become the reference of the KL term, and the
        optimiser and the warm-up start afresh. Without a KL term no reference is kept.
        """
        if self.config.kl_coeff > 0:
            self.reference = FrozenWeights(self.engine, self.model)
        for state in self.engine.optimizer.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
        self.counters["stage_steps"] = 0

    def export_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(published name, whole tensor), one at a time: see `learners.weights`. Collective."""
        return named_tensors(self.model)

    @collective
    def publish_weights(self, version: int, publisher: Publisher) -> Any:
        """Hands all weights to the publisher on rank 0 and returns its handle; others: None."""
        handle, tensors = None, self.export_weights()
        try:
            if self.rank == 0:
                handle = publisher.publish(tensors, version)
        finally:
            if self.config.zero_stage == 3:
                for _ in tensors:  # gathered by all, even if the publisher gave up
                    pass
        self.counters["weight_version"] = version
        if self.device.type == "cuda" and self.config.sleep_while_learning:
            torch.cuda.empty_cache()  # what the update took is the engine's again
        return handle

    def weight_layout(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and whole shape of each of `export_weights`, in its order."""
        return weight_layout(self.model)

    def free_address(self) -> tuple[str, int]:
        """This node's address and a port that is free now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    @collective
    def save_model(self, folder: str) -> None:
        """Writes the model for transformers and vLLM (safetensors, config, tokenizer)."""
        save_model(self.model, self.config.model_path, Path(folder), rank=self.rank)
        dist.barrier()

    @collective
    def save_checkpoint(self, folder: str) -> None:
        """Writes weights, optimiser state, counters and reference, whole or not at all.

        `folder` must be reachable from all learners.

        Raises:
            StorageError: it isn't the same one for all of them.
        """
        target = Path(folder)
        part = target.with_name(target.name + ".part")
        if self.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
        dist.barrier()
        save_optimizer(self.engine, self.model, part / OPTIMIZER)
        if self.reference is not None:
            with self.reference.in_place():
                save_model(self.model, self.config.model_path, part / REFERENCE, rank=self.rank)
        dist.barrier()
        check_all_wrote(part / OPTIMIZER, self.model)
        dist.barrier()  # all have looked before it goes to its place
        if self.rank == 0:
            (part / COUNTERS).write_text(json.dumps(self.counters))
            put_in_place(part, target)
        dist.barrier()

    @collective
    def load_checkpoint(self, folder: str, *, keeping: Sequence[str] = ()) -> None:
        """Goes on where `save_checkpoint` wrote, with any number of learners and ZeRO stage; the
        counters named in `keeping` go on from where they are."""
        source = Path(folder)
        try:
            counters = json.loads((source / COUNTERS).read_text())
        except FileNotFoundError as error:
            raise ConfigError(
                f"{folder} is no learner checkpoint: it has no {COUNTERS}."
            ) from error
        load_optimizer(self.engine, self.model, source / OPTIMIZER)
        self.counters = counters | {name: self.counters[name] for name in keeping}
        self.reference = None
        if self.config.kl_coeff > 0 and (source / REFERENCE).exists():
            self.reference = FrozenWeights(self.engine, self.model)
            self.reference.load(self.model, source / REFERENCE)

    def memory(self) -> dict[str, int]:
        """Bytes that this learner holds: its process, the reference, and the GPU's peak."""
        return {
            "rss_bytes": psutil.Process(os.getpid()).memory_info().rss,
            "reference_bytes": self.reference.nbytes if self.reference else 0,
            "gpu_peak_bytes": (
                torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
            ),
        }

    def get_state(self, components=None, *, not_components=None, **kwargs) -> dict[str, Any]:
        """Counters only: RLlib asks one learner, and gathering weights takes all of them."""
        return {
            COMPONENT_RL_MODULE: {},
            WEIGHTS_SEQ_NO: self.counters["weight_version"],
            "counters": dict(self.counters),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to do: `load_checkpoint` brings weights, optimiser and counters back."""

    def get_checkpointable_components(self) -> list:
        """None: `save_checkpoint` writes what is to be kept."""
        return []

    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """RLlib's own loss hook isn't used: see `update_sequences`."""
        raise NotImplementedError("A DeepSpeedLearner learns through update_sequences().")

    def _plan(self, sequences: pa.Table) -> Plan:
        return plan(
            sequences,
            micro_batch_tokens=self.config.micro_batch_tokens,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _to_device(self, micro_batch: MicroBatch) -> dict[str, Any]:
        values = {name: getattr(micro_batch, name) for name in MicroBatch.__slots__}
        return {
            name: torch.from_numpy(value).to(self.device) if name != "spans" else value
            for name, value in values.items()
        }

    def _logprobs(self, tensors: dict[str, Any], temperature: float) -> Tensor:
        return self._score(tensors, temperature, with_entropy=False)[0]

    def _score(
        self, tensors: dict[str, Any], temperature: float, *, with_entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the replies: the anchor's at temperature 1."""
        temperatures_N = torch.where(tensors["components"] == ANCHOR, 1.0, temperature)
        return self.engine(
            tensors["token_ids"],
            tensors["positions"],
            tensors["spans"],
            tensors["predictors"],
            tensors["targets"],
            temperatures_N,
            tensors["choice_ids"],
            tensors["choice_mask"],
            with_entropy=with_entropy,
        )

    def _reference_logprobs(
        self, micro_batches: list[dict[str, Any]], objective: str
    ) -> list[Tensor | None]:
        """Log-probs under the frozen anchor, for the KL term; None where there is no such term."""
        if objective == "anchor" or self.config.kl_coeff == 0:
            return [None] * len(micro_batches)
        if self.reference is None:
            raise ConfigError("There is no anchor for the KL term: call freeze_anchor() first.")
        self.engine.eval()
        with torch.no_grad(), self.reference.in_place():
            return [self._logprobs(tensors, self.config.temperature) for tensors in micro_batches]

    def _set_learning_rate(self, objective: str) -> float:
        """Linear warm-up from the stage's start, then what the configuration says."""
        steps = self.counters["stage_steps"]  # done
        lr = self.config.anchor_lr if objective == "anchor" else lr_at(self.config.lr, steps)
        lr *= min(1.0, (steps + 1) / max(1, self.config.warmup_steps))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        return lr

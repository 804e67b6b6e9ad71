"""The language model's weights: loading, taking them out whole, saving, the frozen anchor."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations import HfDeepSpeedConfig

from learners.attention import PACKED_GROUPS
from learners.tensor_files import TensorWriter
from starec_ray.errors import ConfigError
from starec_ray.files import put_in_place
from starec_ray.models.resolve import load_tokenizer


def load_language_model(config: Any, deepspeed_settings: dict[str, Any]) -> PreTrainedModel:
    """The causal language model at `config.model_path`, ready to train.

    With ZeRO-3 its parameters are spread over the learners while they are read. Dropout is off:
    the log-probs that are trained must be those that were sampled.
    """
    # transformers looks for a live HfDeepSpeedConfig to find out about ZeRO-3.
    zero3 = HfDeepSpeedConfig(deepspeed_settings) if config.zero_stage == 3 else None
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.model_path,
            dtype=getattr(torch, config.dtype),
            attn_implementation=PACKED_GROUPS,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"Can't load the model at {config.model_path!r}: {error}") from error
    finally:
        del zero3
    if config.zero_stage == 3:
        _restore_rotary_frequencies(model)
    for owner in (model.config.get_text_config(), *model.modules()):
        _take_noise_out(owner)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _take_noise_out(owner: Any) -> None:
    """Of a module, or of a configuration that modules read as they work."""
    if isinstance(owner, nn.Dropout):
        owner.p = 0.0
    for name, value in vars(owner).items():
        if isinstance(value, float) and re.search("dropout|pdrop|jitter", name):
            setattr(owner, name, 0.0)


def _restore_rotary_frequencies(model: PreTrainedModel) -> None:
    """Rotary frequencies in float32: ZeRO-3's loading rounds them to the weights' dtype."""
    shard: Any = next(model.parameters())
    device = shard.ds_tensor.device
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            exact = type(module)(config=model.config).to(device)
            for name, buffer in exact.named_buffers():
                setattr(module, name, buffer)


def named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight whole, under the name that it is published by, tied ones once, one at a time.

    transformers may keep several published weights in one parameter: the experts of a layer.
    All ranks must run through it together.

    Tensors have the model's dtype and lie on the learner's device; an expert's may not be
    contiguous. They are views of the model's memory, with ZeRO-3 of what was gathered for them:
    they are read, not written to, and before the next one is asked for.
    """
    import deepspeed

    for name, parameter in model.named_parameters():
        sharded = hasattr(parameter, "ds_tensor")
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            yield from published(model, {name: parameter.detach()}).items()


def weight_layout(model: PreTrainedModel) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and whole shape of each of `named_tensors`, told without gathering."""
    return [
        (name, tensor.dtype, tuple(tensor.shape))
        for parameter, shape in parameter_shapes(model).items()
        for name, tensor in published(model, {parameter: shape}).items()
    ]


def published(model: PreTrainedModel, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under the names, and in the shapes, of the checkpoint that they were read from."""
    return revert_weight_conversion(model, parameters)


def parameter_shapes(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name → a tensor without data of its dtype and whole shape."""
    return {
        name: torch.empty(
            getattr(parameter, "ds_shape", parameter.shape), dtype=parameter.dtype, device="meta"
        )
        for name, parameter in model.named_parameters()
    }


def save_model(model: PreTrainedModel, model_path: str, folder: Path, *, rank: int) -> None:
    """Writes safetensors, config and tokenizer for transformers and vLLM; all ranks take part.

    Rank 0 writes, beside `folder` first. Other ranks return before the files are in place.
    """
    part = folder.with_name(folder.name + ".part")
    if rank == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    writer = TensorWriter(part, "model") if rank == 0 else None
    for name, tensor in named_tensors(model):
        if writer is not None:
            writer.add(name, tensor)
    if writer is not None:
        writer.write()
        _write_index(writer)
        model.config.save_pretrained(part)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(part)
        load_tokenizer(model_path).save_pretrained(part)
        put_in_place(part, folder)


def _write_index(writer: TensorWriter) -> None:
    """What transformers finds the tensors by: one file goes without an index."""
    files = set(writer.file_of.values())
    if len(files) == 1:
        os.replace(writer.folder / files.pop(), writer.folder / "model.safetensors")
        return
    index = {"metadata": {"total_size": writer.total_bytes}, "weight_map": writer.file_of}
    text = json.dumps(index, indent=2, sort_keys=True)
    (writer.folder / "model.safetensors.index.json").write_text(text)


class FrozenWeights:
    """A copy of this rank's part of the weights that can take the place of the live ones.

    With ZeRO-1 and 2 a rank holds all weights, so the copy is a whole one; with ZeRO-3 it is a
    shard, like the rank's share of the live weights. No second model or engine is needed.
    """

    def __init__(self, engine: Any, model: nn.Module) -> None:
        self.engine = engine
        self._release_gathered()
        self.live = [_local(parameter) for parameter in model.parameters()]
        self.frozen = [tensor.detach().clone() for tensor in self.live]

    @property
    def nbytes(self) -> int:
        """Memory that the copy takes on this rank."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.frozen)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model has the frozen weights. For forward passes, no updates."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        self._release_gathered()
        for i, tensor in enumerate(self.live):
            tensor.data, self.frozen[i] = self.frozen[i], tensor.data

    def _release_gathered(self) -> None:
        """ZeRO-3 may still hold gathered parameters, made from the other weights."""
        if hasattr(self.engine.optimizer, "empty_partition_cache"):
            self.engine.optimizer.empty_partition_cache()

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Takes the frozen weights from a folder that `save_model` wrote; all ranks take part.

        With ZeRO-3 rank 0 alone reads it, and hands out the shards: a node's learners together
        would hold as many whole models.
        """
        import deepspeed

        sharded = any(hasattr(parameter, "ds_tensor") for parameter in model.parameters())
        saved = None
        if not sharded or dist.get_rank() == 0:
            saved = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).state_dict()
        with self.in_place(), torch.no_grad():
            for name, parameter in model.named_parameters():
                with deepspeed.zero.GatheredParameters(
                    [parameter], modifier_rank=0, enabled=sharded
                ):
                    if saved is not None:
                        parameter.copy_(saved[name])


def _local(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of it: with ZeRO-3 a shard."""
    return getattr(parameter, "ds_tensor", parameter)

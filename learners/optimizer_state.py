"""The optimiser's state parameter by parameter, for any number of learners and any ZeRO stage.

safetensors holds numbers alone: reading a checkpoint executes nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learners.tensor_files import TensorReader, TensorWriter
from starec_ray.errors import ConfigError, StorageError

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
WEIGHT = "weight"  # the float32 one that AdamW changes
STEP = "step"


def save_optimizer(engine: Any, model: nn.Module, folder: Path) -> None:
    """Writes float32 weights and AdamW's moments; all ranks take part, and write a share each.

    `folder` must be the same one for all of them.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    rank, ranks = dist.get_rank(), dist.get_world_size()
    states = _states(engine)
    writer = TensorWriter(folder, f"rank-{rank:05d}")
    for number, (name, parameter) in enumerate(model.named_parameters()):
        parts = {WEIGHT: safe_get_full_fp32_param(parameter)}
        for moment in MOMENTS:
            parts[moment] = safe_get_full_optimizer_state(parameter, moment)
        if number % ranks == rank:
            for part, tensor in parts.items():
                writer.add(f"{name}/{part}", tensor)
    if rank == 0:
        writer.add(STEP, states[0][STEP])
    writer.write()


def check_all_wrote(folder: Path, model: nn.Module) -> None:
    """Has all ranks fail alike where their folders lie on several disks.

    Raises:
        StorageError: what `save_optimizer` wrote on some ranks isn't in this rank's folder.
    """
    ranks = min(dist.get_world_size(), len(list(model.parameters())))  # others have no share
    missing = [rank for rank in range(ranks) if not any(folder.glob(f"rank-{rank:05d}-*"))]
    if missing:
        raise StorageError(
            f"{folder} holds nothing of learner {', '.join(map(str, missing))}, which has written "
            "into a folder of that name on another disk: keep runs on storage that all nodes share."
        )


def load_optimizer(engine: Any, model: nn.Module, folder: Path) -> None:
    """Takes what `save_optimizer` wrote, and the model's own weights from it.

    Raises:
        ConfigError: if it was written for another model.
    """
    reader = TensorReader(folder)
    if hasattr(engine.optimizer, "empty_partition_cache"):
        engine.optimizer.empty_partition_cache()  # gathered from the weights before
    states = _states(engine)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for part in (WEIGHT, *MOMENTS):
                shape = getattr(parameter, "ds_shape", parameter.shape)
                try:
                    value = reader.read(f"{name}/{part}", _device(parameter))
                except KeyError:
                    value = None
                if value is None or value.shape != shape:
                    raise ConfigError(f"{folder} is of another model: it has no such {name}.")
                _put(parameter, value, part)
        step = reader.read(STEP)
        for state in states:
            state[STEP].copy_(step)


def _states(engine: Any) -> list[dict[str, Tensor]]:
    """AdamW's state of each flat partition of this rank; zeros before the first step."""
    zero, adamw = engine.optimizer, engine.optimizer.optimizer
    states = []
    for flat in _partitions(zero):
        state = adamw.state[flat]
        if not state:
            state[STEP] = torch.zeros((), dtype=torch.float32, device=flat.device)
            state |= {moment: torch.zeros_like(flat) for moment in MOMENTS}
        states.append(state)
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()  # parameters → places in the partitions
    return states


def _partitions(zero: Any) -> Iterator[Tensor]:
    """The flat float32 tensors that AdamW steps on."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):  # ZeRO-3
        yield from zero.fp32_partitioned_groups_flat
    else:
        for group in zero.optimizer.param_groups:
            yield from group["params"]


def _put(parameter: nn.Parameter, value: Tensor, part: str) -> None:
    """Sets this rank's share of one part of a parameter's state."""
    from deepspeed import utils

    if hasattr(parameter, "ds_tensor"):
        mine = parameter.ds_tensor
        share = torch.zeros(mine.numel(), dtype=value.dtype, device=value.device)
        ours = value.flatten()[dist.get_rank() * mine.numel() :][: mine.numel()]
        share[: ours.numel()] = ours  # the last rank's ends in padding
        if part == WEIGHT:
            utils.safe_set_local_fp32_param(parameter, share)
            mine.copy_(share)
        else:
            utils.safe_set_local_optimizer_state(parameter, share, part)
    elif part == WEIGHT:
        utils.safe_set_full_fp32_param(parameter, value)
        parameter.copy_(value)
    else:
        utils.safe_set_full_optimizer_state(parameter, value, part)


def _device(parameter: nn.Parameter) -> torch.device:
    return getattr(parameter, "ds_tensor", parameter).device

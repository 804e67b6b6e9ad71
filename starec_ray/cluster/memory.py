"""How much memory an env runner and a learner take, computed from a model's size."""

from typing import Any

GIB = 2**30
ADAM_BYTES = 8  # two moments in float32, a parameter


def learner_bytes(parameters: int, bytes_each: int, config: Any) -> float:
    """Weights, gradients, master copy, Adam's moments and the frozen anchor, of one learner.

    ZeRO 1 shards the optimiser's state over the learners, 2 the gradients too, 3 the weights
    too; activations come on top.
    """
    ranks, stage = max(1, config.num_learners), config.zero_stage
    # Of float32 weights too; with ZeRO 3 these are the master copy themselves.
    master = 0 if stage == 3 and bytes_each == 4 else 4
    weights = parameters * bytes_each / (ranks if stage == 3 else 1)
    gradients = parameters * 4 / (ranks if stage >= 2 else 1)  # added up in float32
    optimiser = parameters * (ADAM_BYTES + master) / ranks
    anchor = weights if config.kl_coeff > 0 else 0
    return weights + gradients + optimiser + anchor


def runner_bytes(parameters: int, bytes_each: int, config: Any) -> float:
    """Of an env runner's engine: the weights on each of its GPUs; without GPUs the weights and
    KV caches of all its processes."""
    weights, parts = parameters * bytes_each, config.tensor_parallel_size
    if config.num_gpus_per_env_runner:
        return weights / parts
    return weights + parts * config.kv_cache_gib * GIB

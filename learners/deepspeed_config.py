"""DeepSpeed's configuration, and the process that DeepSpeed finds itself in."""

import logging
import os
from typing import Any

import torch
import torch.distributed as dist

from starec_ray.cluster.host_memory import keep_few_kernels, keep_freed_memory
from starec_ray.errors import ConfigError

# Gradient elements that learners sum at once. DeepSpeed's own 5e8 would take 2 GB, on GPUs twice.
# A CPU gets a bucket's memory anew, page by page, in each backward pass: there it is smaller.
CPU_BUCKET, GPU_BUCKET = 2**24, 2**26


def deepspeed_config(config: Any) -> dict[str, Any]:
    """The DeepSpeed configuration of an algorithm config.

    One DeepSpeed step is one update: the learner sets the accumulation boundary and divides by
    the global token counts itself, so the batch sizes below are formal. In bfloat16 the weights
    that AdamW changes are float32, and so is the sum of the micro-batches' gradients.
    """
    on_gpu = config.num_gpus_per_learner > 0
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.grad_clip or 0.0,
        "steps_per_print": None,
        "zero_optimization": {
            "stage": config.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": on_gpu,
            "reduce_bucket_size": GPU_BUCKET if on_gpu else CPU_BUCKET,
        },
    }
    if config.dtype == "bfloat16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def prepare_process(*, num_cpus: int, use_gpu: bool) -> torch.device:
    """Makes this process one that DeepSpeed can start in; returns the device to train on.

    RLlib has made the process group where there are several learners or remote ones; a local
    learner gets a group of its own. Call before the first import of deepspeed.
    """
    # Ray gives actors one OpenMP thread unless told otherwise.
    os.environ["OMP_NUM_THREADS"] = str(num_cpus)
    torch.set_num_threads(num_cpus)
    # RLlib asks for deterministic algorithms, with which torch would fill every new tensor.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    if use_gpu and not torch.cuda.is_available():
        raise ConfigError(
            "num_gpus_per_learner is above 0, but torch sees no GPU in the learner's process: set "
            "it to 0, or install a torch build with CUDA."
        )
    if not use_gpu:
        keep_freed_memory()
        keep_few_kernels()
        os.environ["DS_ACCELERATOR"] = "cpu"
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            store=dist.HashStore(),
            rank=0,
            world_size=1,
        )
    # A learner sees its own GPU alone, as number 0, whatever its rank on the machine.
    alone = not use_gpu or torch.cuda.device_count() == 1
    os.environ["RANK"] = str(dist.get_rank())
    os.environ["WORLD_SIZE"] = str(dist.get_world_size())
    os.environ["LOCAL_RANK"] = "0" if alone else os.environ.get("LOCAL_RANK", "0")
    os.environ.setdefault("LOCAL_SIZE", "1")

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # No operator is needed that DeepSpeed would compile on first use, for a minute: above all not
    # its shared-memory all-reduce, whose ranks wait for a dead peer for ever.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(
        dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False
    )
    if not use_gpu:
        return torch.device("cpu")
    # FlexAttention is compiled for each kind of pass, width and layer; torch's limit is 8.
    torch._dynamo.config.recompile_limit = 64
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", torch.cuda.current_device())

"""A vLLM engine inside an actor's process."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from actors.weight_transfer.base import Ticket
from starec_ray.cluster.host_memory import keep_few_kernels, without_garbage_search
from starec_ray.cluster.memory import GIB
from starec_ray.errors import STARecError

REPLY_FORM = "reply_form"  # in SamplingParams.extra_args: `ReplyForm.plain()`


def start_engine(config: Any) -> Any:
    """A `vllm.LLM` by the settings of `config`, in this process."""
    on_gpu = config.num_gpus_per_env_runner > 0
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # The second, which vLLM takes on GPUs by itself, refuses logits processors of this kind.
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    settings: dict[str, Any] = {
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enable_sleep_mode": config.sleep_while_learning,
    }
    if not on_gpu:
        threads = str(max(1, int(config.num_cpus_per_env_runner) // config.tensor_parallel_size))
        # Ray gives actors one thread; vLLM would pin its own to the same first cores in every
        # actor of a machine. Both are read when vLLM is imported.
        os.environ["OMP_NUM_THREADS"] = threads
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over kv_cache_gib
        keep_few_kernels()
        # A group shares its prompt's whole blocks; the default of 128 tokens leaves much to redo.
        settings = {
            "enforce_eager": not config.compile_engine,
            "block_size": 32,
            "kv_cache_memory_bytes": int(config.kv_cache_gib * GIB),
        }
        torch.set_num_threads(int(threads))
        # RLlib asks for deterministic algorithms, with which torch would fill every new tensor;
        # vLLM's are so without.
        torch.use_deterministic_algorithms(False)
    with without_garbage_search():
        from vllm import LLM
        from vllm.config import WeightTransferConfig

    llm = LLM(
        config.model_path,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        tensor_parallel_size=config.tensor_parallel_size,
        # In a placement group, as a trial's actors are, vLLM would make Ray actors of its own.
        distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else "uni",
        enable_prefix_caching=True,
        # Log-probs at the sampling temperature; without top-p and top-k, of the whole
        # distribution.
        logprobs_mode="processed_logprobs",
        worker_extension_cls="actors.weight_transfer.worker.WorkerExtension",
        weight_transfer_config=WeightTransferConfig(backend=config.weight_transfer),
        logits_processors=["actors.constrained_decoding:KeepToReplyForm"],
        seed=config.seed or 0,
        disable_log_stats=True,
        **settings,
    )
    llm.collective_rpc("leave_out_ranks")
    return llm


def generate(llm: Any, prompts: Sequence[Any], params: Sequence[Any]) -> list[Any]:
    """The engine's answers to prompts, each by its own SamplingParams."""
    eager = llm.llm_engine.vllm_config.model_config.enforce_eager
    # vLLM has torch compile some small functions, in eager engines too: seconds at the first
    # request, and again for other numbers of answers at a time.
    with torch.compiler.set_stance("force_eager") if eager else nullcontext():
        return llm.generate(prompts, params, use_tqdm=False)


def load_ticket(llm: Any, ticket: Ticket) -> dict[str, float]:
    """Replaces the engine's weights by a published version; returns the seconds of each part.

    Raises:
        WeightsLostError: if the version isn't to be had any more.
        STARecError: if requests are still running.
    """
    with _replacing_weights(llm):
        return ticket.load(llm)


def load_saved_model(llm: Any, folder: str) -> None:
    """Replaces the engine's weights by those of a saved model of the same architecture.

    Args:
        folder: with safetensors in it, or a Hugging Face id.

    Raises:
        STARecError: if requests are still running.
    """
    with _replacing_weights(llm):
        llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})


def sleep(llm: Any) -> None:
    """Frees what the engine holds of its GPU, weights included, unless it sleeps already; new
    weights wake it.

    On a CPU vLLM frees nothing and only refuses to sample.
    """
    if not llm.llm_engine.is_sleeping():
        llm.sleep(level=2)


@contextmanager
def _replacing_weights(llm: Any) -> Iterator[None]:
    """The engine's memory is there for new weights, and nothing computed with old ones is left."""
    asleep = llm.llm_engine.is_sleeping()
    if asleep:
        llm.wake_up(tags=["weights"])  # the cache's memory isn't needed beside a copy of them
    yield
    if asleep:
        llm.wake_up(tags=["kv_cache"])
    llm.collective_rpc("repack_weights")
    if not llm.reset_prefix_cache():
        raise STARecError("vLLM kept its prefix cache: requests are still running.")

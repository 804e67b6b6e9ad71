"""How large a cluster has to be: memory, tokens per second and network, computed.

Nothing here is measured. A roofline of one GPU with stated shares of its peaks, Qwen2.5's shapes
and a stated workload; docs/cluster.md shows the tables, which this prints.
"""

from dataclasses import dataclass
from types import SimpleNamespace

from starec_ray.cluster.memory import GIB, learner_bytes

BYTES = 2  # bfloat16

# One H100 SXM, by its data sheet; the network of a node of 8 with a 400 Gb/s port each.
GPU_BYTES = 80e9
GPU_BANDWIDTH = 3.35e12  # bytes/s
GPU_FLOPS = 989e12  # bfloat16, dense
LINK_BANDWIDTH = 50e9  # bytes/s, a GPU's port to other nodes
STORE_BANDWIDTH = 2e9  # bytes/s, one process copying into the object store

# Shares of the peaks that are reached.
DECODE_SHARE = 0.6  # of the memory's bandwidth
COMPUTE_SHARE = 0.4  # of the FLOPs, in prefill and training
LEARNER_SHARE = 0.9  # of a GPU's memory
ENGINE_SHARE = 0.85  # `gpu_memory_utilization`
WEIGHTS_SHARE = 0.6  # of that at most, so that a KV cache has room

# The workload: recipes/ml-1m-qwen2.5-7b-8gpu.yaml with replies half as long as they may be.
CASES, GROUP = 64, 8
PROMPT, REPLY = 1200, 384  # tokens
REPLIES_A_CASE = 3  # a ranking, a reflection, a ranking again
MAX_NUM_SEQS = 256
MICRO_BATCH = 16384  # tokens
# FLOPs a parameter and position: forward 2, backward 4, recomputed forward 2, the anchor's 2.
TRAIN_FLOPS, FORWARD_FLOPS = 10, 2
# All weights, or as many gradients, over the network a micro-batch (ZeRO-3): forward, backward,
# gradients, and the anchor's forward.
SHARD_PASSES = 4
# Positions of a group's row (one prompt, all replies) for each token of a reply.
POSITIONS = (PROMPT + GROUP * REPLY) / (GROUP * REPLY)


@dataclass(frozen=True)
class Shape:
    """A model's published shape."""

    name: str
    parameters: float
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int

    @property
    def weight_bytes(self) -> float:
        return self.parameters * BYTES

    @property
    def kv_bytes(self) -> float:
        """Of one token: keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES


SHAPES = (
    Shape("0.5B", 0.494e9, 24, 896, 2, 64),
    Shape("1.5B", 1.54e9, 28, 1536, 2, 128),
    Shape("7B", 7.62e9, 28, 3584, 4, 128),
    Shape("14B", 14.8e9, 48, 5120, 8, 128),
    Shape("32B", 32.8e9, 64, 5120, 8, 128),
    Shape("72B", 72.7e9, 80, 8192, 8, 128),
)


@dataclass(frozen=True)
class Engine:
    """A vLLM engine: how many GPUs, and what each holds; tokens/s sampled by all of them."""

    gpus: int
    weight_bytes: float
    kv_bytes: float
    sequences: int
    tokens_per_second: float


@dataclass(frozen=True)
class Learner:
    """The fewest learners (ZeRO-3) that hold a model; each one's bytes, and reply tokens/s."""

    gpus: int
    state_bytes: float
    activation_bytes: float
    tokens_per_second: float


def engine(shape: Shape, at_a_time: int = MAX_NUM_SEQS) -> Engine:
    """Decoding is bound by reading weights and caches, or by products if the batch is large."""
    room = ENGINE_SHARE * GPU_BYTES
    gpus = 1
    while shape.weight_bytes / gpus > WEIGHTS_SHARE * room:
        gpus *= 2
    cache = room - shape.weight_bytes / gpus
    # A group's prompt is cached once.
    each = shape.kv_bytes / gpus * (REPLY + PROMPT / GROUP)
    sequences = max(1, min(at_a_time, int(cache / each)))
    context = PROMPT + REPLY / 2
    read = (shape.weight_bytes + sequences * context * shape.kv_bytes) / gpus
    compute = FORWARD_FLOPS * shape.parameters * sequences / gpus
    step = max(read / (DECODE_SHARE * GPU_BANDWIDTH), compute / (COMPUTE_SHARE * GPU_FLOPS))
    prefill = FORWARD_FLOPS * shape.parameters / gpus * PROMPT / (COMPUTE_SHARE * GPU_FLOPS)
    seconds = step / sequences + prefill / (GROUP * REPLY)  # a token
    return Engine(gpus, shape.weight_bytes / gpus, cache, sequences, 1 / seconds)


def learner(shape: Shape) -> Learner:
    """States by `learner_bytes`; activations with checkpointing: a layer's input for every
    layer, and one layer whole (34 bytes a token and hidden unit, arXiv 2205.05198)."""
    activations = MICRO_BATCH * shape.hidden * (BYTES * shape.layers + 34)
    gpus = 1
    while (states := _states(shape, gpus)) + activations > LEARNER_SHARE * GPU_BYTES:
        gpus *= 2
    rate = COMPUTE_SHARE * GPU_FLOPS / (TRAIN_FLOPS * shape.parameters * POSITIONS)
    return Learner(gpus, states, activations, rate)


def _states(shape: Shape, gpus: int) -> float:
    config = SimpleNamespace(num_learners=gpus, zero_stage=3, kl_coeff=1e-3)
    return learner_bytes(round(shape.parameters), BYTES, config)


@dataclass(frozen=True)
class Iteration:
    """Seconds of one iteration's parts, half of the GPUs sampling and half learning.

    Attributes:
        sampling: rank, reflect and rank again, one after the other.
        update: products of the learners.
        shards: gathering weights and scattering gradients between learners (ZeRO-3), once a
            micro-batch; hidden behind the products if shorter.
        store, broadcast: new weights to the engines, through the object store or by NCCL.
    """

    sampling: float
    update: float
    shards: float
    store: float
    broadcast: float


def iteration(shape: Shape, gpus: int, cases: int) -> Iteration:
    """
    Args:
        gpus: of the cluster.
        cases: `cases_per_iteration`.
    """
    one = engine(shape)
    engines, learners = max(1, gpus // 2 // one.gpus), gpus // 2
    replies = cases * GROUP
    share = max(1, -(-replies // engines))  # of one engine
    rate = engine(shape, min(share, MAX_NUM_SEQS)).tokens_per_second
    sampling = REPLIES_A_CASE * share * REPLY / rate
    # Rankings and reflections are learned from, the rankings that follow only reward.
    positions = (REPLIES_A_CASE - 1) * replies * REPLY * POSITIONS
    compute = TRAIN_FLOPS * shape.parameters / (COMPUTE_SHARE * GPU_FLOPS)
    batches = max(1, -(-positions // (learners * MICRO_BATCH)))
    return Iteration(
        sampling=sampling,
        update=positions / learners * compute,
        shards=batches * SHARD_PASSES * shape.weight_bytes / LINK_BANDWIDTH,
        store=2 * shape.weight_bytes / STORE_BANDWIDTH,
        broadcast=shape.weight_bytes / LINK_BANDWIDTH,
    )


def model_table() -> str:
    """Markdown: what each model size needs at least, and how fast it is."""
    lines = [
        "| model | engine | weights each | KV cache each | engine's tokens/s | fewest learners "
        "| states each | activations each | tokens/s a learner |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for shape in SHAPES:
        e, t = engine(shape), learner(shape)
        lines.append(
            f"| {shape.name} | {_gpus(e.gpus)} | {_gib(e.weight_bytes)} | {_gib(e.kv_bytes)} "
            f"| {_round(e.tokens_per_second)} | {_gpus(t.gpus)} | {_gib(t.state_bytes)} "
            f"| {_gib(t.activation_bytes)} | {_round(t.tokens_per_second)} |"
        )
    return "\n".join(lines)


def growth_table() -> str:
    """Markdown: an iteration of the 7B model on 8, 64 and 512 GPUs, at the recipe's batch and at
    one that grows with the cluster."""
    shape = next(shape for shape in SHAPES if shape.name == "7B")
    lines = [
        "| GPUs | cases | sampling | update | ZeRO-3 traffic | weights by store | by NCCL |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for gpus, cases in ((8, CASES), (64, CASES), (64, 8 * CASES), (512, CASES), (512, 64 * CASES)):
        parts = iteration(shape, gpus, cases)
        seconds = (parts.sampling, parts.update, parts.shards, parts.store, parts.broadcast)
        shown = " | ".join(f"{value:.1f} s" for value in seconds)
        lines.append(f"| {gpus} | {cases} | {shown} |")
    return "\n".join(lines)


def _gpus(number: int) -> str:
    return f"{number} GPU" + "s" * (number > 1)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _round(number: float) -> str:
    """Two digits: more would claim what an estimate doesn't know."""
    return f"{float(f'{number:.2g}'):,.0f}"


if __name__ == "__main__":
    print(model_table(), growth_table(), sep="\n\n")

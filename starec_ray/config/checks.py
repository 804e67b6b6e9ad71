"""What the fields of a configuration may hold, told before anything starts."""

import itertools
import math
import numbers
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, SupportsFloat

from actors.weight_transfer.choice import WEIGHT_TRANSFERS
from starec_ray.agent.formats import FORMATS
from starec_ray.agent.item_text import ATTRIBUTES
from starec_ray.cluster.placement import fits_beside_an_engine
from starec_ray.credit import CREDIT_ASSIGNMENTS
from starec_ray.errors import ConfigError
from starec_ray.rewards import REWARD_SHAPES
from starec_ray.schemas import TRACE_KINDS

ONE_OF: dict[str, Collection] = {
    "reply_format": FORMATS,
    "reward_shape": REWARD_SHAPES,
    "credit_assignment": CREDIT_ASSIGNMENTS,
    "zero_stage": (1, 2, 3),
    "weight_transfer": WEIGHT_TRANSFERS,
    "dtype": ("auto", "float32", "bfloat16"),
}


@dataclass(frozen=True, slots=True)
class Range:
    """Which finite numbers a field may hold: those from `low` to `high`, without the ends that are
    open, or the `whole` ones of them; and why, where that doesn't go without saying."""

    low: float = 0
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    why: str = ""

    def __contains__(self, given: SupportsFloat) -> bool:
        value = float(given)
        if not self.low <= value <= self.high or math.isinf(value):
            return False
        at_open_end = (self.open_low and value == self.low) or (
            self.open_high and value == self.high
        )
        return not at_open_end

    def __str__(self) -> str:
        """As in "it must be …": "above 0", "2 or more", "from 0 to 1"."""
        low, high = (
            f"{end}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high)
        )
        if self.high == math.inf:
            return f"above {low}" if self.open_low else f"{low} or more"
        if not self.open_low and not self.open_high:
            return f"from {low} to {high}"
        low = f"above {low}" if self.open_low else f"{low} or more"
        high = f"below {high}" if self.open_high else f"at most {high}"
        return f"{low} and {high}"


RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1, whole=True, why="NumPy's generators take no more"),
    **dict.fromkeys(
        (
            "cases_per_iteration",
            "num_reward_actors",
            "micro_batch_tokens",
            "max_model_len",
            "max_rank_tokens",
            "max_reflect_tokens",
            "anchor_batch_size",
            "anchor_updates_per_iteration",
            "max_num_seqs",
            "tensor_parallel_size",
            "validation_cases",
            "max_skipped_steps",
        ),
        Range(0, open_low=True, whole=True),
    ),
    **dict.fromkeys(
        (
            "anchor_lr",
            "grad_clip",
            "start_timeout_s",
            "sample_timeout_s",
            "update_timeout_s",
            "reward_timeout_s",
            "transfer_timeout_s",
            "storage_timeout_s",
            "kv_cache_gib",
            "clip_high",
            "ratio_cap",
            "failure_window_s",
        ),
        Range(0, open_low=True),
    ),
    **dict.fromkeys(
        (
            "num_learners",
            "num_cpus_per_env_runner",
            "max_staleness",
            "warmup_steps",
            "anchor_epochs",
            "anchor_validation_cases",
            "num_traces",
            "history_shown",
            "evaluation_interval",
            "max_failures",
        ),
        Range(0, whole=True),
    ),
    **dict.fromkeys(
        (
            "num_gpus_per_env_runner",
            "num_cpus_per_learner",
            "teacher_popularity_weight",
            "kl_coeff",
            "weight_decay",
            "max_kl",
            "max_grad_norm",
            "min_entropy",
        ),
        Range(0),
    ),
    "group_size": Range(2, whole=True, why="advantages compare the rollouts of a group"),
    "num_env_runners": Range(1, whole=True, why="sampling needs at least one engine"),
    "temperature": Range(0.01, why="vLLM takes 0.01 in the place of less"),
    "reflect_share": Range(0, 1),
    "reflect_trace_share": Range(0, 1),
    "num_gpus_per_learner": Range(0, 1, why="a learner works with one GPU: take more learners"),
    "held_out_trace_share": Range(0, 1, open_high=True, why="with 1 no trace is left to learn"),
    "gpu_memory_utilization": Range(0, 1, open_low=True),
    "clip_low": Range(
        0, 1, open_low=True, open_high=True, why="ratios are clipped below 1 - clip_low"
    ),
}
# RLlib's settings that would do nothing here, and what does.
RLLIB_UNUSED = {
    "train_batch_size": "an iteration has cases_per_iteration groups of group_size",
    "_train_batch_size_per_learner": "an iteration has cases_per_iteration groups of group_size",
    "minibatch_size": "micro_batch_tokens bounds what a learner takes at once",
    "num_epochs": "an iteration's rollouts are learned from in one update",
    "grad_clip_by": "grad_clip bounds the global norm",
    "gamma": "a ranking is one action, and earns its reward at once",
    "optimizer": "it is AdamW: lr, weight_decay and warmup_steps set it",
    "min_time_s_per_iteration": "an iteration is one update",
    "min_sample_timesteps_per_iteration": "an iteration has cases_per_iteration groups",
    "min_train_timesteps_per_iteration": "an iteration has cases_per_iteration groups",
    "custom_evaluation_function": "validation_cases are asked",
    "create_local_env_runner": "num_env_runners says how many engines there are",
    "shuffle_batch_per_epoch": "an iteration's rollouts are learned from in one update",
    "num_aggregator_actors_per_learner": "the learners pack their batches themselves",
    "explore": "temperature says how sampling explores; evaluation is greedy",
    "batch_mode": "a rollout is one whole reply",
    "num_envs_per_env_runner": "max_num_seqs bounds what an engine decodes at once",
    "rollout_fragment_length": "a rollout is one whole reply",
    "evaluation_duration": "validation_cases are asked",
    "evaluation_duration_unit": "validation_cases are asked",
    "evaluation_config": "users are evaluated with the settings of the training",
    "evaluation_num_env_runners": "the env runners evaluate too",
    "evaluation_parallel_to_training": "the env runners evaluate between two iterations",
}


def check_fields(config: Any) -> None:
    """Checks every field of this system.

    Raises:
        ConfigError: names the field, its value, and what it may be.
    """
    _check_unused(config)
    _check_numbers(config)
    _check_lr(config)
    _check_training(config)
    _check_mappings(config)
    _check_actors(config)
    _check_ranking(config)


def check_number(name: str, value: Any, allowed: Range) -> None:
    """Raises ConfigError, which names it, if a value is no number of a range."""
    why = f" ({allowed.why})" if allowed.why else ""
    if not isinstance(value, SupportsFloat) or not math.isfinite(value):
        may_be = "a finite number"
    elif allowed.whole and not isinstance(value, numbers.Integral):
        may_be = "a whole number"
    elif value not in allowed:
        may_be = f"{allowed}{why}"
    else:
        return
    raise ConfigError(f"{name} is {value!r}; it must be {may_be}.")


def _check_unused(config: Any) -> None:
    defaults = type(config)()
    for field, instead in RLLIB_UNUSED.items():
        if getattr(config, field) != getattr(defaults, field):
            name = field.lstrip("_")
            raise ConfigError(
                f"{name} is {getattr(config, field)!r}; it is RLlib's and would do nothing here: "
                f"{instead}."
            )


def _check_numbers(config: Any) -> None:
    for field, choices in ONE_OF.items():
        if getattr(config, field) not in choices:
            raise _wrong(config, field, f"it may be one of: {', '.join(map(str, choices))}")
    for field, allowed in RANGES.items():
        check_number(field, getattr(config, field), allowed)


def _check_training(config: Any) -> None:
    if config.anchor_epochs > 0 and config.num_traces == 0:
        raise _wrong(
            config,
            "num_traces",
            "nothing is left to learn: raise it, or set anchor_epochs to 0.",
        )
    if config.max_kl > 0 and config.kl_coeff == 0:
        raise _wrong(
            config, "max_kl", "with kl_coeff 0 no KL is measured: raise that, or set it to 0."
        )
    for field in ("max_rank_tokens", "max_reflect_tokens"):
        if getattr(config, field) >= config.max_model_len:
            raise _wrong(
                config,
                field,
                f"prompt and reply share a window of {config.max_model_len}: lower it, or raise "
                "max_model_len.",
            )


def _check_mappings(config: Any) -> None:
    for kind, weight in config.trace_weights.items():
        if kind not in TRACE_KINDS or not _is_amount(weight):
            raise ConfigError(
                f"trace_weights has {kind}: {weight!r}; it may give {', '.join(TRACE_KINDS)} a "
                "number of 0 or above."
            )
    for field in ("custom_resources_per_env_runner", "custom_resources_per_learner"):
        for name, amount in (getattr(config, field) or {}).items():
            if not isinstance(name, str) or name in ("CPU", "GPU") or not _is_amount(amount):
                raise ConfigError(
                    f"{field} has {name}: {amount!r}; it may give a resource of your own a number "
                    "of 0 or above (CPUs and GPUs have keys of their own)."
                )


def _check_actors(config: Any) -> None:
    of_learner, of_runner = config.num_gpus_per_learner, config.num_gpus_per_env_runner
    if config.weight_transfer == "nccl" and min(of_learner, of_runner) < 1:
        raise _wrong(
            config,
            "weight_transfer",
            "it takes a GPU for each learner and each runner: give them one, or take object_store.",
        )
    if config.weight_transfer == "gloo" and max(of_learner, of_runner) > 0:
        raise _wrong(config, "weight_transfer", "it is for CPUs: between GPUs take nccl.")
    if config.max_staleness > 0 and config.weight_transfer != "object_store":
        raise _wrong(
            config,
            "weight_transfer",
            "a broadcast needs the learners, who train while max_staleness is above 0: it must be "
            "object_store then.",
        )
    if config.max_staleness > 0 and config.sleep_while_learning:
        raise _wrong(
            config,
            "sleep_while_learning",
            "with max_staleness above 0 the engines sample while the learners learn: lower that "
            "to 0, or set this to false.",
        )
    if of_learner > 0 and of_runner > 0 and config.num_learners == 0:
        raise _wrong(
            config,
            "num_learners",
            "the driver's own learner would take a GPU that Ray gives to an env runner: it must be "
            "1 or more.",
        )
    if 0 < of_runner < 1 and config.gpu_memory_utilization > of_runner:
        raise _wrong(
            config,
            "gpu_memory_utilization",
            f"a runner has {of_runner} of a GPU (num_gpus_per_env_runner): it may be no more.",
        )
    # What keeps two apart is an engine beside each.
    apart = config.num_env_runners if fits_beside_an_engine(config) else 1
    if 0 < of_learner <= 0.5 and config.num_learners > apart:
        raise _wrong(
            config,
            "num_learners",
            f"two with {of_learner:g} of a GPU could come onto one, where NCCL refuses them: "
            f"at most {apart} here, or num_gpus_per_learner above 0.5.",
        )
    if 0 < of_runner <= 0.5:
        raise _wrong(
            config,
            "num_gpus_per_env_runner",
            "two engines would come onto one GPU, and each takes what the other does for its own: "
            "more than 0.5, or 0 (CPU cores).",
        )
    if of_runner > 0 and config.tensor_parallel_size != max(1, of_runner):
        raise _wrong(
            config,
            "tensor_parallel_size",
            f"a runner has {of_runner:g} GPUs, each of which takes one part: it must be "
            f"{max(1, of_runner):g}.",
        )


def _check_ranking(config: Any) -> None:
    unknown = set(config.item_attributes) - set(ATTRIBUTES)
    if unknown:
        raise ConfigError(
            f"item_attributes has {', '.join(sorted(unknown))}; it may hold: "
            + ", ".join(ATTRIBUTES)
        )
    graded = config.constrained_decoding and FORMATS[config.reply_format].graded
    if config.credit_assignment == "candidate" and not graded:
        raise _wrong(
            config,
            "credit_assignment",
            "only constrained grades say of each candidate what it was worth: set reply_format "
            "to grades and constrained_decoding to true, or credit_assignment to reply.",
        )
    if config.constrained_decoding and config.think_before_ranking:
        raise ConfigError(
            "constrained_decoding leaves no room for a rationale: set think_before_ranking to "
            "false, or decode freely."
        )


def _check_lr(config: Any) -> None:
    if isinstance(config.lr, int | float):
        if not 0 < config.lr < math.inf:
            raise _wrong(config, "lr", "it must be a finite number above 0.")
        return
    pairs = [pair for pair in config.lr if isinstance(pair, list | tuple) and len(pair) == 2]
    numbers = [n for pair in pairs for n in pair if _is_amount(n)]
    steps = [pair[0] for pair in pairs]
    sound = len(numbers) == 2 * len(config.lr) >= 4 and steps[0] == 0
    if not sound or any(a >= b for a, b in itertools.pairwise(steps)):
        raise _wrong(
            config, "lr", "a schedule is [[0, value], [step, value], …], its steps rising."
        )


def _is_amount(value: object) -> bool:
    """A finite number of 0 or above."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value < math.inf


def _wrong(config: Any, field: str, may_be: str) -> ConfigError:
    return ConfigError(f"{field} is {getattr(config, field)!r}; {may_be}")

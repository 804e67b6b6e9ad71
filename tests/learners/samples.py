"""Tables of sequences, the fields that learners read off the algorithm config, and learners."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from learners.learner import DeepSpeedLearner
from learners.module import PlaceholderModule
from starec_ray.schemas import SEQUENCES

VOCABULARY = 128
MICRO_BATCH_TOKENS = 90


def make_sequences(
    groups: list[tuple[str, int, list[int]]],
    seed: int = 0,
    trace_weight: float = 1.0,
    alike: int = 0,
) -> pa.Table:
    """SEQUENCES with random tokens for (component, prompt length, reply lengths) each; prompts of
    a component have their first `alike` tokens in common."""
    rng = np.random.default_rng(seed)
    rows = []
    for group, (component, prompt_length, reply_lengths) in enumerate(groups):
        prompt = rng.integers(3, VOCABULARY, prompt_length).tolist()
        if alike:
            opening = np.random.default_rng(len(component)).integers(3, VOCABULARY, alike).tolist()
            prompt = (opening + prompt)[:prompt_length]
        for length in reply_lengths:
            logprobs = rng.normal(-4.8, 0.3, length).tolist()
            advantages = rng.normal(size=length).tolist()
            if component == "anchor":
                advantages = [trace_weight] * length
            rows.append(
                {
                    "component": component,
                    "group": group,
                    "prompt_ids": prompt,
                    "reply_ids": rng.integers(3, VOCABULARY, length).tolist(),
                    "logprobs": None if component == "anchor" else logprobs,
                    "advantages": advantages,
                }
            )
    return pa.Table.from_pylist(rows, schema=SEQUENCES)


class LearnerConfig(AlgorithmConfig):
    """What learners read, and no more."""

    def __init__(self, model_path: Path, **changes: Any) -> None:
        super().__init__()
        settings = {
            "seed": 0,
            "model_path": str(model_path),
            "dtype": "float32",
            "max_model_len": 512,
            "temperature": 0.8,
            "lr": 1e-3,
            "anchor_lr": 2e-3,
            "weight_decay": 0.01,
            "grad_clip": 1.0,
            "warmup_steps": 2,
            "kl_coeff": 0.05,
            "clip_low": 0.2,
            "clip_high": 0.28,
            "max_staleness": 0,
            "ratio_cap": 2.0,
            "zero_stage": 2,
            "micro_batch_tokens": MICRO_BATCH_TOKENS,
            "gradient_checkpointing": False,
            "num_learners": 0,
            "num_cpus_per_learner": 1,
            "num_gpus_per_learner": 0,
        }
        self.apply(settings | changes)

    def apply(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            setattr(self, name, value)

    def get_default_learner_class(self) -> type:
        return DeepSpeedLearner


def build_group(model_path: Path, **changes: Any) -> LearnerGroup:
    """RLlib's own learner group around DeepSpeed learners."""
    return LearnerGroup(
        config=LearnerConfig(model_path, **changes),
        module_spec=RLModuleSpec(module_class=PlaceholderModule),
    )


def local_learner(model_path: Path, **changes: Any) -> DeepSpeedLearner:
    """The learner of a group without actors."""
    (answer,) = build_group(model_path, **changes).foreach_learner(lambda learner: learner)
    return answer.get()


def weights_of(learner: DeepSpeedLearner) -> dict[str, np.ndarray]:
    """All weights, copied, by Hugging Face name."""
    return {name: tensor.float().numpy().copy() for name, tensor in learner.export_weights()}


def largest_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)

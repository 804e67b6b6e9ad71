"""What only GPUs can show: their kernels, an engine that shares one with a learner, NCCL."""

import copy

import pytest
import torch
from rich.console import Console
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from learners.families import LEAST_OPENING
from starec_ray.jobs.train import train
from tests.documented_metrics import undocumented
from tests.learners.samples import make_sequences
from tests.learners.test_logprobs import SMALL, packed, plain
from tests.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.engine

LARGER = SMALL | {"hidden_size": 128}  # FlexAttention's kernels want heads of 16 or more
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LARGER)),
    "gemma3, windows of 16": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **LARGER,
            head_dim=32,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
}


def needs_gpus(number: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        torch.cuda.device_count() < number, reason=f"needs {number} GPU(s) that torch can use"
    )


@needs_gpus(1)
@pytest.mark.parametrize("kind", MODELS)
def test_scores_and_gradients_of_its_kernels_equal_plain_rows_on_the_cpu(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    there = copy.deepcopy(model).cuda()
    table = make_sequences(
        [("rank", 30, [5, 9, 1, 7]), ("reflect", 12, [15, 11]), ("rank", 22, [8])],
        alike=LEAST_OPENING,
    )
    order = torch.argsort(plain(model, table)[2], stable=True)
    expected, expected_entropy, advantages = (t[order] for t in plain(model, table))
    (expected * advantages).sum().backward()

    scores = [t.cpu() for t in packed(there, table, 500, device="cuda")]
    found, entropy, advantages = (t[torch.argsort(scores[2], stable=True)] for t in scores)
    (found * advantages).sum().backward()

    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-3, rtol=1e-3)
    for (name, own), other in zip(there.named_parameters(), model.parameters(), strict=True):
        gap = (own.grad.cpu() - other.grad).norm() / other.grad.norm()
        assert gap < 1e-2, name


def check_run(small_world, tiny_model, tmp_path, **sections) -> None:
    """A run of both stages learns, and what was sampled agrees with what is trained."""
    recipe = tiny_recipe(
        small_world,
        tiny_model,
        None,
        model={"dtype": "bfloat16"},
        run={"iterations": 2, "evaluate": False},
        **sections,
    )
    run = train(recipe, tmp_path / "run", Console(quiet=True))
    lines = run.read_metrics()
    assert not undocumented(lines)
    anchor = [line for line in lines if line["stage"] == "anchor"]
    assert anchor[-1]["loss"] < anchor[0]["loss"]
    for line in lines[len(anchor) :]:
        assert line["ratio_mean"] == pytest.approx(1.0, abs=0.05)
        assert line["logprob_gap"] < 0.1
        assert line["gpu_peak_bytes/learner_0"] > 0
    assert not run.read_failures()


@needs_gpus(1)
def test_an_engine_and_a_learner_take_turns_on_one(small_world, tiny_model, tmp_path, ray_cluster):
    check_run(
        small_world,
        tiny_model,
        tmp_path,
        env_runners={
            "num_env_runners": 1,
            "num_gpus_per_env_runner": 0.6,
            "gpu_memory_utilization": 0.5,
            "sleep_while_learning": True,
        },
        learners={"num_learners": 1, "num_gpus_per_learner": 0.4},
    )


@pytest.mark.parametrize(
    ("num_learners", "zero_stage"),
    [pytest.param(1, 2, marks=needs_gpus(2)), pytest.param(2, 3, marks=needs_gpus(3))],
)
def test_weights_are_broadcast_by_nccl(
    small_world, tiny_model, tmp_path, ray_cluster, num_learners, zero_stage
):
    check_run(
        small_world,
        tiny_model,
        tmp_path,
        env_runners={
            "num_env_runners": 1,
            "num_gpus_per_env_runner": 1,
            "gpu_memory_utilization": 0.5,
            "weight_transfer": "nccl",
        },
        learners={
            "num_learners": num_learners,
            "num_gpus_per_learner": 1,
            "zero_stage": zero_stage,
        },
    )

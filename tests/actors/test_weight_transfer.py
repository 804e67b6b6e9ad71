"""Weights in real engines: exact by broadcast, after the loss of a runner, in tensor parallel."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.env_runner import VLLMEnvRunner
from actors.weight_transfer.object_store import ObjectStorePublisher
from learners.weights import named_tensors
from starec_ray.agent.tasks import RankTask
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError
from tests.exact_logprobs import largest_gap
from tests.tiny_experts import tiny_experts

pytestmark = pytest.mark.engine

TASKS = [RankTask(f"u{user}/0", "Likes Alpha.") for user in range(4)]


def test_a_tensor_parallel_engine_gets_the_weights_in_all_of_its_parts(
    small_world, tiny_model, tmp_path, ray_cluster
):
    config = (
        STARecConfig()
        .data(path=small_world)
        .model(name=str(tiny_model), dtype="float32", max_model_len=512, max_rank_tokens=12)
        .env_runners(tensor_parallel_size=2, num_cpus_per_env_runner=2, max_num_seqs=8)
        .resolve()
    )
    runner = VLLMEnvRunner(config=config)
    try:
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(tmp_path / "model")
        ticket = ObjectStorePublisher(timeout_s=60.0).publish(model.named_parameters(), version=1)
        runner.load_weights(ticket)
        rollouts = runner.sample(TASKS, rollouts=2, temperature=1.0, seed=0, weight_version=1)
        assert largest_gap(tmp_path / "model", rollouts) < 1e-4
        runner.load_model(str(tiny_model), version=2)
        rollouts = runner.sample(TASKS, rollouts=2, temperature=1.0, seed=0, weight_version=2)
        assert largest_gap(tiny_model, rollouts) < 1e-4
    finally:
        runner.stop()


def test_an_engine_of_experts_gets_the_weights_of_each(
    small_world, tiny_model, tmp_path, ray_cluster
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = tiny_experts(len(tokenizer), tokenizer.eos_token_id)
    model.save_pretrained(tmp_path / "before")
    tokenizer.save_pretrained(tmp_path / "before")
    config = (
        STARecConfig()
        .data(path=small_world)
        .model(
            name=str(tmp_path / "before"), dtype="float32", max_model_len=512, max_rank_tokens=12
        )
        .env_runners(max_num_seqs=8)
        .resolve()
    )
    runner = VLLMEnvRunner(config=config)
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(tmp_path / "after")
        ticket = ObjectStorePublisher(timeout_s=60.0).publish(named_tensors(model), version=1)
        runner.load_weights(ticket)
        rollouts = runner.sample(TASKS, rollouts=2, temperature=1.0, seed=0, weight_version=1)
        assert largest_gap(tmp_path / "after", rollouts) < 1e-4
        runner.load_model(str(tmp_path / "before"), version=2)
        rollouts = runner.sample(TASKS, rollouts=2, temperature=1.0, seed=0, weight_version=2)
        assert largest_gap(tmp_path / "before", rollouts) < 1e-4
    finally:
        runner.stop()


@pytest.mark.parametrize(
    ("backend", "gpus", "message"), [("nccl", 0, "a GPU for each"), ("gloo", 1, "nccl")]
)
def test_a_broadcast_that_the_devices_do_not_have_is_refused(
    backend, gpus, message, small_world, tiny_model
):
    config = STARecConfig().data(path=small_world).model(name=str(tiny_model))
    config.env_runners(weight_transfer=backend, num_gpus_per_env_runner=gpus)
    with pytest.raises(ConfigError, match=message):
        config.validate()

"""Weights in real engines: exact by broadcast, after the loss of a runner, in tensor parallel."""

import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.env_runner import VLLMEnvRunner
from actors.weight_transfer.object_store import ObjectStorePublisher
from starec_ray.agent.tasks import RankTask
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError
from tests.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.engine

TASKS = [RankTask(f"u{user}/0", "Likes Alpha.") for user in range(4)]


def largest_gap(folder, rollouts) -> float:
    """Between the runners' log-probs and those of transformers with the saved weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    gap = 0.0
    for row in rollouts.to_pylist():
        prompt, reply = row["prompt_ids"], row["reply_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[range(len(reply)), reply]
        gap = max(gap, (expected - torch.tensor(row["logprobs"])).abs().max().item())
    return gap


def test_broadcast_weights_are_exact_also_after_a_runner_was_lost_in_the_middle(
    small_world, tiny_model, tmp_path, ray_cluster, monkeypatch
):
    recipe = tiny_recipe(
        small_world,
        tiny_model,
        None,
        anchor={"num_traces": 16, "anchor_epochs": 1, "anchor_updates_per_iteration": 1},
        env_runners={"weight_transfer": "gloo"},
    )
    algo = recipe.config.resolve().build_algo()
    try:
        algo.train()  # an optimiser step on traces: other weights than the engines started with
        algo.save_model(tmp_path / "model")
        both = algo.runners.sample(TASKS, rollouts=2, temperature=1.0, seed=0)
        assert set(both["weight_version"].to_pylist()) == {1}
        assert largest_gap(tmp_path / "model", both) < 1e-4
        group = algo.transfer._group
        assert set(algo.report) >= {"weight_transfer/join", "weight_transfer/load"}

        algo._sync_weights()
        assert algo.transfer._group == group

        pids = algo.env_runner_group.foreach_env_runner(lambda runner: os.getpid())
        call = algo.runners._call_in_time

        def kill_one_before_it_receives(method, requests):
            if method == "load_weights":
                os.kill(pids[0], signal.SIGKILL)
            return call(method, requests)

        with monkeypatch.context() as patch:
            patch.setattr(algo.runners, "_call_in_time", kill_one_before_it_receives)
            algo._sync_weights()
        for _ in range(60):
            again = algo.runners.sample(TASKS, rollouts=2, temperature=1.0, seed=1)
            if len(algo.runners._current) == 2:
                break
        assert len(algo.runners._current) == 2
        assert set(again["weight_version"].to_pylist()) == {3}
        assert largest_gap(tmp_path / "model", again) < 1e-4
        assert algo.transfer._group != group
    finally:
        algo.stop()


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


@pytest.mark.parametrize(
    ("backend", "gpus", "message"), [("nccl", 0, "needs a GPU"), ("gloo", 1, "nccl")]
)
def test_a_broadcast_that_the_devices_do_not_have_is_refused(
    backend, gpus, message, small_world, tiny_model
):
    config = STARecConfig().data(path=small_world).model(name=str(tiny_model))
    config.env_runners(weight_transfer=backend, num_gpus_per_env_runner=gpus)
    with pytest.raises(ConfigError, match=message):
        config.validate()

"""Both stages on real engines: the anchor's best epoch, then iterations sampled ahead."""

import math
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from starec_ray.agent.agent import Agent
from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.config.recipe import Recipe, build, with_values
from starec_ray.errors import CollapseError
from starec_ray.jobs.train import train
from starec_ray.run_dir import LAST_BATCH, RunDir
from starec_ray.training.anchor import AnchorData
from starec_ray.training.traces import read_traces
from tests.documented_metrics import undocumented
from tests.exact_logprobs import reply_logprobs
from tests.small_world import dataset, write_random_traces
from tests.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.engine

ITERATIONS = 4


@pytest.fixture(scope="module")
def recipe(small_world, tiny_model, tmp_path_factory) -> Recipe:
    agent = Agent.from_config(
        tiny_recipe(small_world, tiny_model, None).config, dataset(small_world)
    )
    traces = write_random_traces(tmp_path_factory.mktemp("traces") / "t.parquet", agent, 40)
    return tiny_recipe(
        small_world,
        tiny_model,
        traces,
        anchor={
            "anchor_epochs": 3,
            "anchor_lr": 0.3,  # too fast, so that the last epoch isn't the best
            "held_out_trace_share": 0.25,
            "anchor_validation_cases": 4,
        },
        training={"cases_per_iteration": 4, "group_size": 4, "max_staleness": 1},
        env_runners={"num_env_runners": 1},
        learners={"num_learners": 1},
        run={
            "iterations": ITERATIONS,
            "checkpoint_every": 2,
            "checkpoint_storage": f"file://{tmp_path_factory.mktemp('store')}",
            "evaluate": False,
        },
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory, ray_cluster) -> RunDir:
    return train(recipe, tmp_path_factory.mktemp("run") / "run", Console(quiet=True))


def test_the_anchor_is_the_epoch_that_ranked_best_for_held_out_users(recipe, run):
    epochs = [line for line in run.read_metrics() if "held_out_nll" in line]
    assert len(epochs) == 3
    for epoch in epochs:
        assert 0 <= epoch["validation"]["malformed_rate"] <= 1
    scores = [epoch["validation"]["ndcg@10"] for epoch in epochs]
    best = scores.index(max(scores))
    assert best < 2

    config = recipe.config
    agent = Agent.from_config(config, dataset(config.data_path))
    data = AnchorData(
        read_traces(config.traces[0], agent),
        agent,
        AutoTokenizer.from_pretrained(config.model_path),
        longest_replies=dict.fromkeys(("rank", "reflect"), config.max_rank_tokens),
        weights={},
        held_out_share=config.held_out_trace_share,
        epochs=3,
        batch_size=config.anchor_batch_size,
        seed=config.seed,
    )
    anchor = AutoModelForCausalLM.from_pretrained(run.anchored_model, dtype=torch.float32)
    logprobs = [
        reply_logprobs(anchor, row["prompt_ids"], row["reply_ids"])
        for row in data.held_out.to_pylist()
    ]
    nll = -torch.cat(logprobs).mean().item()
    assert nll == pytest.approx(epochs[best]["held_out_nll"], abs=1e-3)
    assert abs(epochs[best]["held_out_nll"] - epochs[-1]["held_out_nll"]) > 0.1


def test_iterations_sampled_ahead_are_one_version_old_and_each_is_used(run):
    lines = [line for line in run.read_metrics() if line["stage"] == "reinforce"]
    assert [line["iterations_done"] for line in lines] == [1, 2, 3, 4]
    assert [line["staleness"] for line in lines] == [0, 1, 1, 1]
    for line in lines:
        for name in ("ratio_mean", "logprob_gap", "truncated_fraction"):
            assert math.isfinite(line[name])
        ledger = {k.removeprefix("rollouts/"): n for k, n in line.items() if "rollouts/" in k}
        used = ledger["trained"] + ledger["skipped"] + ledger["followed_up"]
        assert ledger["asked"] + ledger["asked_again"] == ledger["finished"] + ledger["lost"]
        assert (ledger["finished"], ledger["waiting"]) == (used, 0)
    assert not undocumented(run.read_metrics())
    assert run.rollout_iterations() == [line["iteration"] for line in lines]
    assert not run.read_failures()  # nor any that came of ending it
    assert run.model.exists()


def test_the_run_goes_on_elsewhere_from_its_storage_and_where_it_collapses_names_the_way_back(
    recipe, run, tmp_path
):
    data, traces = recipe.config.data_path, recipe.config.traces[0]
    changes = {
        "data.path": str(shutil.copytree(data, tmp_path / "data")),
        "anchor.traces": [str(shutil.copy(traces, tmp_path / "copy.parquet"))],
        "training.lr": 1e-3,
        "run.iterations": ITERATIONS + 1,
        "fault_tolerance.min_entropy": 100.0,
    }
    last = run.read_metrics()[-1]
    *_, before, newest = [path.name for path in Checkpoints(run.checkpoints, keep=2).all()]
    assert newest == f"iteration-{last['iteration']:05d}"
    elsewhere = build(with_values(recipe.sections, changes))
    with pytest.raises(CollapseError, match=rf"entropy is .*{before}. Go on from it") as told:
        train(elsewhere, tmp_path / "run", Console(quiet=True), resume=True)
    assert "training.lr=0.0005" in str(told.value)
    (line,) = RunDir(tmp_path / "run").read_metrics()
    assert (line["iteration"], line["lr"], line["skipped"]) == (last["iteration"] + 1, 1e-3, 0)
    assert line["iterations_done"] == ITERATIONS
    anchor, brought = (
        load_file(at.anchored_model / "model.safetensors") for at in (run, RunDir(tmp_path / "run"))
    )
    assert anchor.keys() == brought.keys()
    assert all(torch.equal(tensor, brought[name]) for name, tensor in anchor.items())
    batch = pq.read_table(tmp_path / "run" / LAST_BATCH)
    assert len(batch) == line["rollouts_trained"] - last["rollouts_trained"]

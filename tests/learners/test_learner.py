"""One learner, in this process: DeepSpeed against plain PyTorch, and its own files."""

import copy
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from learners.learner import lr_at
from learners.tensor_files import TensorReader, TensorWriter
from starec_ray.errors import ConfigError, DataError
from tests.learners.samples import (
    VOCABULARY,
    LearnerConfig,
    largest_difference,
    local_learner,
    make_sequences,
    weights_of,
)
from tests.tiny_experts import tiny_experts

pytestmark = pytest.mark.engine


def plain_training(model, table: pa.Table, config: LearnerConfig, steps: int):
    """AdamW on the objective's formulas, a forward pass for each sequence; the losses."""
    reference = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    rows = table.to_pylist()
    counts = {r["component"]: 0 for r in rows}
    for row in rows:
        counts[row["component"]] += len(row["reply_ids"])

    def logprobs(scorer, row):
        temperature = 1.0 if row["component"] == "anchor" else config.temperature
        ids = torch.tensor([row["prompt_ids"] + row["reply_ids"]])
        logits = scorer(input_ids=ids).logits[0, len(row["prompt_ids"]) - 1 : -1] / temperature
        return logits.log_softmax(-1).gather(1, torch.tensor(row["reply_ids"])[:, None])[:, 0]

    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1, (step + 1) / config.warmup_steps)
        optimizer.zero_grad()
        loss = torch.zeros(())
        for row in rows:
            trained = logprobs(model, row)
            advantages = torch.tensor(row["advantages"])
            if row["component"] == "anchor":
                token_losses = -trained * advantages  # the trace's weight
            else:
                ratio = (trained - torch.tensor(row["logprobs"])).exp()
                bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
                with torch.no_grad():
                    frozen = logprobs(reference, row)
                kl = (frozen - trained).exp() - (frozen - trained) - 1
                token_losses = -torch.minimum(ratio * advantages, bounded * advantages)
                token_losses = token_losses + config.kl_coeff * kl
            loss = loss + token_losses.sum() / counts[row["component"]]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_three_updates_equal_plain_adamw_on_whole_rows(tiny_llama, mixed_sequences, zero_stage):
    config = LearnerConfig(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    expected = plain_training(model, mixed_sequences, config, steps=3)

    learner = local_learner(tiny_llama, zero_stage=zero_stage)
    learner.freeze_anchor()
    metrics = [learner.update_sequences(mixed_sequences, objective="grpo") for _ in range(3)]

    assert [m["loss"] for m in metrics] == pytest.approx(expected, rel=1e-4)
    assert [m["lr"] for m in metrics] == pytest.approx([5e-4, 1e-3, 1e-3])
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert largest_difference(weights_of(learner), weights) < 5e-5


def test_gradient_checkpointing_changes_nothing_but_memory(tiny_llama, mixed_sequences):
    norms = []
    for on in (False, True):
        learner = local_learner(tiny_llama, gradient_checkpointing=on, kl_coeff=0.0)
        norms.append(learner.update_sequences(mixed_sequences, objective="grpo")["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bfloat16_keeps_small_steps_in_float32_weights(tiny_llama, zero_stage):
    # The nearest bfloat16 neighbours of weights above 1/16 are 2^-11 away: no single step of
    # 5e-5 would be seen if it were rounded at once.
    learner = local_learner(
        tiny_llama, dtype="bfloat16", zero_stage=zero_stage, lr=5e-5, kl_coeff=0.0, warmup_steps=0
    )
    before = weights_of(learner)
    sequences = make_sequences([("rank", 10, [6, 5, 7])])
    for _ in range(8):
        learner.update_sequences(sequences, objective="grpo")
    after = weights_of(learner)
    moved = [(after[name] != w)[np.abs(w) > 1 / 16] for name, w in before.items()]
    assert np.concatenate(moved).mean() > 0.2
    for name, buffer in learner.model.named_buffers():
        assert buffer.dtype == torch.float32, name


def test_the_anchor_stage_lowers_the_nll_of_its_traces(tiny_llama):
    traces = make_sequences([("anchor", 20, [10]), ("anchor", 15, [12]), ("anchor", 9, [8])])
    learner = local_learner(tiny_llama)
    before = learner.nll(traces)
    first = learner.update_sequences(traces, objective="anchor")
    assert first["anchor_loss"] == pytest.approx(before["nll"], rel=1e-5)
    assert first["lr"] == pytest.approx(1e-3)  # half of anchor_lr: the first of two warm-up steps
    for _ in range(10):
        learner.update_sequences(traces, objective="anchor")
    assert learner.nll(traces)["nll"] < 0.7 * before["nll"]
    assert before["reply_tokens"] == 30


def test_freezing_the_anchor_resets_the_optimiser_and_the_warm_up(tiny_llama, mixed_sequences):
    traces = make_sequences([("anchor", 20, [10])])
    learner = local_learner(tiny_llama)
    for _ in range(3):
        learner.update_sequences(traces, objective="anchor")
    learner.freeze_anchor()
    states = learner.engine.optimizer.optimizer.state.values()
    assert all(not tensor.any() for state in states for tensor in state.values())
    metrics = learner.update_sequences(mixed_sequences, objective="grpo")
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the model of now
    assert metrics["lr"] == pytest.approx(5e-4)
    assert learner.update_sequences(mixed_sequences, objective="grpo")["kl"] > 1e-4


def test_without_a_kl_term_there_is_no_reference(tiny_llama, mixed_sequences):
    learner = local_learner(tiny_llama, kl_coeff=0.0)
    learner.freeze_anchor()
    assert "kl" not in learner.update_sequences(mixed_sequences, objective="grpo")
    assert learner.memory()["reference_bytes"] == 0


def test_the_reference_counts_as_memory(tiny_llama):
    learner = local_learner(tiny_llama)
    learner.freeze_anchor()
    numbers = sum(w.size for w in weights_of(learner).values())
    assert learner.memory()["reference_bytes"] == 4 * numbers


def test_a_kl_term_without_a_frozen_anchor_is_an_error(tiny_llama, mixed_sequences):
    with pytest.raises(ConfigError, match="freeze_anchor"):
        local_learner(tiny_llama).update_sequences(mixed_sequences, objective="grpo")


def test_rollouts_in_the_anchor_stage_are_an_error(tiny_llama, mixed_sequences):
    with pytest.raises(DataError, match="rollouts are in the table"):
        local_learner(tiny_llama).update_sequences(mixed_sequences, objective="anchor")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_step_that_is_not_finite_is_left_out_and_counted(
    tiny_llama, mixed_sequences, zero_stage, dtype
):
    learner = local_learner(tiny_llama, kl_coeff=0.0, zero_stage=zero_stage, dtype=dtype)
    before = weights_of(learner)
    rows = mixed_sequences.to_pylist()
    rows[0]["advantages"][0] = math.nan
    broken = pa.Table.from_pylist(rows, schema=mixed_sequences.schema)
    metrics = learner.update_sequences(broken, objective="grpo")
    assert metrics["skipped_steps"] == metrics["skipped"] == 1
    assert largest_difference(weights_of(learner), before) == 0
    metrics = learner.update_sequences(mixed_sequences, objective="grpo")
    assert (metrics["skipped_steps"], metrics["skipped"]) == (1, 0)
    assert metrics["lr"] == pytest.approx(5e-4)
    assert largest_difference(weights_of(learner), before) > 0


def test_skipped_steps_are_counted_on_where_other_weights_come_back(
    tiny_llama, mixed_sequences, tmp_path
):
    learner = local_learner(tiny_llama, kl_coeff=0.0)
    learner.save_checkpoint(str(tmp_path / "before"))
    learner.counters |= {"skipped_steps": 2, "rollouts_trained": 8}
    learner.load_checkpoint(str(tmp_path / "before"), keeping=["skipped_steps"])
    assert (learner.counters["skipped_steps"], learner.counters["rollouts_trained"]) == (2, 0)
    learner.load_checkpoint(str(tmp_path / "before"))
    assert learner.counters["skipped_steps"] == 0


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_saved_model_opens_in_transformers_with_equal_logits(
    tiny_llama, mixed_sequences, tmp_path, zero_stage
):
    learner = local_learner(tiny_llama, kl_coeff=0.0, zero_stage=zero_stage)
    learner.update_sequences(mixed_sequences, objective="grpo")
    learner.save_model(str(tmp_path / "model"))

    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (
        largest_difference(
            weights_of(learner), {n: p.detach().numpy() for n, p in opened.named_parameters()}
        )
        == 0
    )
    traces = make_sequences([("anchor", 20, [10])])
    (row,) = traces.to_pylist()
    ids = torch.tensor([row["prompt_ids"] + row["reply_ids"]])
    logprobs = opened(input_ids=ids).logits[0, 19:-1].log_softmax(-1)
    nll = -logprobs.gather(1, torch.tensor(row["reply_ids"])[:, None]).mean().item()
    assert learner.nll(traces)["nll"] == pytest.approx(nll, rel=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token == "<2>"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_large_model_is_saved_in_several_files(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("learners.tensor_files.FILE_BYTES", 100_000)
    learner = local_learner(tiny_llama)
    learner.save_model(str(tmp_path / "model"))
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (
        largest_difference(
            weights_of(learner), {n: p.detach().numpy() for n, p in opened.named_parameters()}
        )
        == 0
    )


@pytest.mark.parametrize(
    ("zero_stage", "dtype"), [(1, "bfloat16"), (2, "float32"), (3, "bfloat16")]
)
def test_a_checkpoint_resumes_as_if_nothing_had_happened(
    tiny_llama, mixed_sequences, tmp_path, zero_stage, dtype
):
    settings = {"zero_stage": zero_stage, "dtype": dtype, "warmup_steps": 10}
    learner = local_learner(tiny_llama, **settings)
    learner.update_sequences(make_sequences([("anchor", 20, [10])]), objective="anchor")
    learner.freeze_anchor()
    learner.update_sequences(mixed_sequences, objective="grpo")
    learner.save_checkpoint(str(tmp_path / "checkpoint"))
    expected = learner.update_sequences(mixed_sequences, objective="grpo")

    resumed = local_learner(tiny_llama, **settings)
    resumed.load_checkpoint(str(tmp_path / "checkpoint"))
    found = resumed.update_sequences(mixed_sequences, objective="grpo")

    timed = {"seconds", "tokens_per_second"}
    assert {k: v for k, v in found.items() if k not in timed} == pytest.approx(
        {k: v for k, v in expected.items() if k not in timed}, rel=1e-6
    )
    assert largest_difference(weights_of(resumed), weights_of(learner)) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("zero_stage", [2, 3])
@pytest.mark.parametrize(("wrote", "reads"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_checkpoint_is_gone_on_from_in_another_dtype(
    tiny_llama, mixed_sequences, tmp_path, zero_stage, wrote, reads
):
    learner = local_learner(tiny_llama, zero_stage=zero_stage, dtype=wrote)
    learner.freeze_anchor()
    learner.update_sequences(mixed_sequences, objective="grpo")
    learner.save_checkpoint(str(tmp_path / "written"))
    expected = learner.update_sequences(mixed_sequences, objective="grpo")
    other = local_learner(tiny_llama, zero_stage=zero_stage, dtype=reads)
    other.load_checkpoint(str(tmp_path / "written"))
    other.save_checkpoint(str(tmp_path / "read"))
    before, after = (TensorReader(tmp_path / name / "optimizer") for name in ("written", "read"))
    assert before.names == after.names
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.names)
    found = other.update_sequences(mixed_sequences, objective="grpo")
    for name in ("lr", "stage_steps", "rollouts_trained"):
        assert found.get(name) == expected.get(name)
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.05)


def test_a_folder_that_is_no_checkpoint_is_an_error(tiny_llama, tmp_path):
    with pytest.raises(ConfigError, match="no learner checkpoint"):
        local_learner(tiny_llama).load_checkpoint(str(tmp_path))


def test_a_checkpoint_of_another_model_is_an_error(tiny_llama, tmp_path):
    learner = local_learner(tiny_llama, zero_stage=1)
    learner.save_checkpoint(str(tmp_path / "checkpoint"))
    for path in (tmp_path / "checkpoint" / "optimizer").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="of another model: it has no such"):
        learner.load_checkpoint(str(tmp_path / "checkpoint"))


def test_a_file_too_many_that_holds_a_tensor_again_is_an_error(tmp_path):
    for name in ("rank-00000", "rank-00001"):
        writer = TensorWriter(tmp_path, name)
        writer.add("step", torch.ones(()))
        writer.write()
    with pytest.raises(ConfigError, match=r"rank-00000-00001.* both hold step"):
        TensorReader(tmp_path)


def test_a_publisher_reads_all_weights_under_their_hugging_face_names(tiny_llama):
    class Publisher:
        def publish(self, named_tensors, version):
            return version, {name: tensor.clone() for name, tensor in named_tensors}

    learner = local_learner(tiny_llama)
    version, weights = learner.publish_weights(7, Publisher())
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert version == 7
    assert {n: w.tolist() for n, w in weights.items()} == {
        n: p.tolist() for n, p in model.named_parameters()
    }
    assert learner.get_state(components="rl_module", inference_only=True)["weights_seq_no"] == 7


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_experts_are_trained_together_and_published_one_by_one(
    tiny_llama, mixed_sequences, tmp_path, zero_stage
):
    published = tmp_path / "published"
    tiny_experts(VOCABULARY, eos_token_id=2).save_pretrained(published)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(published)
    before = load_file(published / "model.safetensors")
    learner = local_learner(published, zero_stage=zero_stage)
    learner.freeze_anchor()
    learner.update_sequences(mixed_sequences, objective="grpo")

    after = {name: tensor.clone() for name, tensor in learner.export_weights()}
    expert = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert not torch.equal(after[expert], before[expert])
    shapes = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in after.items()]
    assert learner.weight_layout() == shapes
    learner.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == after.keys() == before.keys()
    assert all(torch.equal(saved[name], after[name]) for name in saved)


def test_a_model_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="Can't load the model"):
        local_learner(tmp_path / "nowhere")


def test_a_schedule_goes_in_straight_lines_and_stays_at_its_ends():
    schedule = [[0, 0.0], [10, 1.0], [20, 1.0], [30, 0.0]]
    values = [lr_at(schedule, steps) for steps in (0, 1, 5, 15, 25, 30, 99)]
    assert values == [0.0, 0.1, 0.5, 1, 0.5, 0, 0]
    assert lr_at(0.3, 7) == 0.3

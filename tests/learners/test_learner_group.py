"""Two learners, as Ray actors in RLlib's LearnerGroup."""

import math
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from ray.rllib.core.learner.learner_group import LearnerGroup
from transformers import AutoModelForCausalLM

from learners import deepspeed_config
from learners.tensor_files import TensorReader
from starec_ray.errors import StorageError
from tests.learners.samples import (
    build_group,
    largest_difference,
    local_learner,
    make_sequences,
    weights_of,
)

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def group(tiny_llama, ray_cluster):
    """Started once: each test builds the engines that it needs in the same two actors."""
    group = build_group(tiny_llama, num_learners=2)
    yield group
    group.shutdown()


def on_all(group: LearnerGroup, func):
    answers = [answer.get() for answer in group.foreach_learner(func, timeout_seconds=120)]
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    if errors:
        raise errors[0]
    return answers


def rebuild(group: LearnerGroup, *, persistent: int = 0, **changes) -> None:
    """Other engines in the same actors.

    Args:
        persistent: ZeRO-3 keeps parameters of fewer elements whole on all learners; with
            DeepSpeed's 100,000 those of this model would be.
    """

    def build(learner):
        settings = deepspeed_config.deepspeed_config

        def with_threshold(config):
            found = settings(config)
            found["zero_optimization"]["stage3_param_persistence_threshold"] = persistent
            return found

        learner.config.apply({"zero_stage": 2, "kl_coeff": 0.05, **changes})
        learner._is_built = False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("learners.learner.deepspeed_config", with_threshold)
            learner.build()

    on_all(group, build)


@pytest.mark.parametrize(
    ("zero_stage", "persistent"),
    [(1, 0), (2, 0), pytest.param(3, 100_000, id="3, all whole"), pytest.param(3, 0, id="3")],
)
def test_two_learners_equal_one(group, tiny_llama, mixed_sequences, zero_stage, persistent):
    def three_updates(learner):
        learner.freeze_anchor()
        return [learner.update_sequences(mixed_sequences, objective="grpo") for _ in range(3)]

    one = local_learner(tiny_llama)
    expected = three_updates(one)
    rebuild(group, persistent=persistent, zero_stage=zero_stage)
    found, also_found = on_all(group, three_updates)

    for name in ("loss", "anchor_loss", "rank_loss", "reflect_loss", "kl", "entropy", "grad_norm"):
        values = [metrics[name] for metrics in expected]
        assert [metrics[name] for metrics in found] == pytest.approx(values, rel=1e-4, abs=1e-6)
    timed = {"seconds", "tokens_per_second"}
    assert [{**m, **dict.fromkeys(timed)} for m in found] == [
        {**m, **dict.fromkeys(timed)} for m in also_found
    ]
    assert found[0]["micro_batches"] < expected[0]["micro_batches"]
    for weights in on_all(group, weights_of):
        assert largest_difference(weights, weights_of(one)) < 5e-5


def test_with_zero_3_each_learner_keeps_half_of_the_reference(group):
    rebuild(group, zero_stage=2)
    on_all(group, lambda learner: learner.freeze_anchor())
    whole = [m["reference_bytes"] for m in on_all(group, lambda learner: learner.memory())]
    rebuild(group, zero_stage=3)
    on_all(group, lambda learner: learner.freeze_anchor())
    halves = [m["reference_bytes"] for m in on_all(group, lambda learner: learner.memory())]
    assert whole[0] == whole[1] and halves == [whole[0] / 2] * 2


@pytest.mark.parametrize(("wrote", "reads"), [(2, 3), (3, 1)])
def test_a_checkpoint_is_gone_on_from_with_another_zero_stage_and_number_of_learners(
    group, tiny_llama, mixed_sequences, tmp_path, wrote, reads
):
    folder = str(tmp_path / "checkpoint")

    def save_and_go_on(learner):
        learner.freeze_anchor()
        learner.update_sequences(mixed_sequences, objective="grpo")
        learner.save_checkpoint(folder)
        return learner.update_sequences(mixed_sequences, objective="grpo")

    def resume(learner):
        learner.load_checkpoint(folder)
        learner.save_checkpoint(f"{folder}-again")
        return learner.update_sequences(mixed_sequences, objective="grpo")

    rebuild(group, zero_stage=wrote)
    expected = on_all(group, save_and_go_on)[0]
    rebuild(group, zero_stage=reads)
    found = [on_all(group, resume)[0], resume(local_learner(tiny_llama, zero_stage=reads))]
    for metrics in found:
        for name in ("loss", "kl", "grad_norm", "lr", "rollouts_trained"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-4)
    # Weights and moments come back bit for bit.
    before = TensorReader(tmp_path / "checkpoint" / "optimizer")
    after = TensorReader(tmp_path / "checkpoint-again" / "optimizer")
    assert before.names == after.names and len(before.names) > 10
    for name in before.names:
        assert torch.equal(before.read(name), after.read(name)), name


@pytest.mark.parametrize(
    ("zero_stage", "persistent", "reading"),
    [
        (2, 0, [True, True]),  # each holds a whole reference anyway
        pytest.param(3, 0, [True, False], id="3"),
        pytest.param(3, 100_000, [True, False], id="3, all whole"),
    ],
)
def test_a_reference_comes_back_as_it_was_and_with_zero_3_one_learner_reads_it(
    group, mixed_sequences, tmp_path, zero_stage, persistent, reading
):
    folder = str(tmp_path / "checkpoint")

    def reference_logprobs(learner):
        micro_batches = [
            learner._to_device(m) for m in learner._plan(mixed_sequences).micro_batches
        ]
        return learner._reference_logprobs(micro_batches, "grpo")

    def save(learner):
        learner.freeze_anchor()
        learner.update_sequences(mixed_sequences, objective="grpo")
        learner.save_checkpoint(folder)
        return reference_logprobs(learner)

    def resume(learner):
        read = []

        def watched(path, **options):
            read.append(path)
            return AutoModelForCausalLM.from_pretrained(path, **options)

        with pytest.MonkeyPatch.context() as patch:
            reader = SimpleNamespace(from_pretrained=watched)
            patch.setattr("learners.weights.AutoModelForCausalLM", reader)
            learner.load_checkpoint(folder)
        return bool(read), reference_logprobs(learner)

    rebuild(group, zero_stage=zero_stage, persistent=persistent)
    before = on_all(group, save)
    rebuild(group, zero_stage=zero_stage, persistent=persistent)
    after = on_all(group, resume)
    assert [read for read, _ in after] == reading
    for wanted, (_, found) in zip(before, after, strict=True):
        assert all(map(torch.equal, wanted, found)) and len(wanted) == len(found) > 0


def test_a_learner_without_work_keeps_step(group):
    rebuild(group, kl_coeff=0.0)
    single = make_sequences([("rank", 10, [4])])
    found = on_all(group, lambda learner: learner.update_sequences(single, objective="grpo"))
    assert found[0]["reply_tokens"] == 4 and found[0]["skipped_steps"] == 0


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_gradient_that_is_not_finite_on_one_learner_is_left_out_on_both(
    group, mixed_sequences, zero_stage
):
    rows = mixed_sequences.to_pylist()
    rows[0]["advantages"][0] = math.nan
    broken = pa.Table.from_pylist(rows, schema=mixed_sequences.schema)

    def updates(learner):
        mine = learner._plan(broken).micro_batches
        before = weights_of(learner)
        skipped = learner.update_sequences(broken, objective="grpo")
        then = weights_of(learner)
        taken = learner.update_sequences(mixed_sequences, objective="grpo")
        moved = largest_difference(weights_of(learner), then)
        holds_it = any(np.isnan(batch.advantages).any() for batch in mine)
        return holds_it, skipped, largest_difference(then, before), taken, moved

    rebuild(group, kl_coeff=0.0, zero_stage=zero_stage)
    both = on_all(group, updates)
    assert sorted(holds_it for holds_it, *_ in both) == [False, True]
    for _, skipped, drift, taken, moved in both:
        assert (skipped["skipped_steps"], skipped["rollouts_trained"], drift) == (1, 0, 0)
        assert taken["skipped_steps"] == 1 and taken["rollouts_trained"] > 0 and moved > 0


def test_learners_that_see_different_disks_refuse_to_save(group, tmp_path):
    def refuse(learner):
        with pytest.raises(StorageError) as refused:
            learner.save_checkpoint(f"{tmp_path}/{learner.rank}/checkpoint")
        return str(refused.value)

    rebuild(group)
    for rank, told in enumerate(on_all(group, refuse)):
        assert f"holds nothing of learner {1 - rank}" in told
        assert not (tmp_path / str(rank) / "checkpoint").exists()


def test_rllib_gets_counters_from_one_learner_without_a_gather(group):
    rebuild(group, zero_stage=3)
    state = group.get_state(components="learner/rl_module", inference_only=True)
    assert state["learner"]["rl_module"] == {}


def test_when_one_learner_fails_the_others_stop_at_once_and_name_its_error(group, mixed_sequences):
    rebuild(group, kl_coeff=0.0)

    def update(learner):
        if learner.rank == 1:
            learner.config.temperature = "hot"
        return learner.update_sequences(mixed_sequences, objective="grpo")

    start = time.monotonic()
    errors = [answer.get() for answer in group.foreach_learner(update, timeout_seconds=60)]
    assert time.monotonic() - start < 30
    assert len(errors) == 2 and all(isinstance(error, Exception) for error in errors)
    assert "learner 1 in update_sequences: TypeError" in str(errors[0])
    assert "Another learner failed first" in str(errors[0])

"""The env runner on a real vLLM engine: exact log-probs, the right weights, no targets."""

import shutil

import pyarrow.parquet as pq
import pytest
import torch
import vllm
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from actors.env_runner import VLLMEnvRunner
from actors.weight_transfer.object_store import ObjectStorePublisher
from starec_ray.agent.formats import FORMATS, GRADES
from starec_ray.agent.tasks import RankTask, ReflectTask
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError, StaleWeightsError
from starec_ray.schemas import ROLLOUTS
from tests.exact_logprobs import largest_gap

pytestmark = pytest.mark.engine

TASKS = [RankTask("u0/0", "Likes Alpha."), ReflectTask("u1/0", "", ("0", "1", "2", "3"), "3")]


@pytest.fixture(scope="module")
def config(small_world, tiny_model, tmp_path_factory) -> STARecConfig:
    """Of an engine over a data folder that has no targets at all."""
    data = tmp_path_factory.mktemp("blind") / "data"
    shutil.copytree(small_world, data, ignore=shutil.ignore_patterns("targets.parquet"))
    return (
        STARecConfig()
        .data(path=data)
        .model(
            name=str(tiny_model),
            dtype="float32",
            max_model_len=512,
            reply_format="grades",
            think_before_ranking=False,
            item_attributes=(),
            history_shown=5,
            max_rank_tokens=12,
            max_reflect_tokens=8,
        )
        .env_runners(max_num_seqs=16, kv_cache_gib=0.1, num_cpus_per_env_runner=1)
        .resolve()
    )


@pytest.fixture(scope="module")
def runner(config):
    """An engine in this process."""
    runner = VLLMEnvRunner(config=config)
    yield runner
    runner.stop()


def test_the_engine_keeps_to_the_model_runner_that_takes_its_logits_processor(runner):
    """On a GPU vLLM would choose another, which refuses to start with it."""
    assert vllm.envs.VLLM_USE_V2_MODEL_RUNNER is False


@pytest.fixture(scope="module")
def perturbed(tiny_model, tmp_path_factory):
    """The tiny model with other weights, saved."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("perturbed")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_model_at_the_sampling_temperature(
    runner, tiny_model, temperature
):
    runner.load_model(str(tiny_model), version=1)
    rollouts = runner.sample(TASKS, rollouts=4, temperature=temperature, seed=3, weight_version=1)
    assert rollouts.schema.equals(ROLLOUTS)
    assert rollouts["task"].to_pylist() == [0] * 4 + [1] * 4
    assert rollouts["kind"].to_pylist() == ["rank"] * 4 + ["reflect"] * 4
    assert largest_gap(tiny_model, rollouts, temperature) < 1e-4


def test_an_eager_engine_compiles_nothing_when_it_samples(runner, tiny_model):
    """vLLM's sampler would have torch compile a function of its own, for seconds."""
    runner.load_model(str(tiny_model), version=1)
    torch._dynamo.reset()
    counters.clear()
    runner.sample(TASKS, rollouts=2, temperature=1.0, seed=0, weight_version=1)
    assert not counters["frames"]


@pytest.mark.parametrize("reply_format", FORMATS)
def test_constrained_rankings_are_whole_and_their_logprobs_those_of_the_choices(
    runner, tiny_model, reply_format, monkeypatch
):
    monkeypatch.setattr(runner.agent, "constrained", True)
    monkeypatch.setattr(runner.agent.writer, "reply_format", FORMATS[reply_format])
    monkeypatch.setattr(runner.config, "max_rank_tokens", 60)
    runner.load_model(str(tiny_model), version=1)
    rollouts = runner.sample(TASKS, rollouts=6, temperature=0.7, seed=3, weight_version=1)
    rankings = rollouts.slice(0, 6)
    assert rankings["malformed"].to_pylist() == [False] * 6
    assert len(set(rankings["reply"].to_pylist())) > 1
    assert set(rankings["finish_reason"].to_pylist()) == {"stop"}
    assert rollouts["choices"].to_pylist()[6:] == [None] * 6  # reflections are free
    assert largest_gap(tiny_model, rollouts, 0.7) < 1e-4


def test_greedy_rankings_are_by_the_expected_grades(runner, tiny_model, monkeypatch):
    monkeypatch.setattr(runner.agent, "constrained", True)
    runner.load_model(str(tiny_model), version=1)
    [row] = runner.sample(
        TASKS[:1], rollouts=1, temperature=0, seed=0, weight_version=1
    ).to_pylist()

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    prompt, reply = row["prompt_ids"], row["reply_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
    digits = runner.tokenizer.convert_tokens_to_ids(list(GRADES))
    graded = [place for place, choices in enumerate(row["choices"]) if len(choices) > 1]
    expected = logits[graded][:, digits].softmax(-1) @ torch.arange(10.0)
    assert row["ranking"] == [str(item) for item in expected.argsort(descending=True).tolist()]


def test_published_weights_replace_all_of_the_old_ones_and_the_prefix_cache(
    runner, tiny_model, perturbed, ray_cluster
):
    runner.load_model(str(tiny_model), version=1)
    runner.sample(TASKS, rollouts=1, temperature=0.0, seed=0, weight_version=1)
    model = AutoModelForCausalLM.from_pretrained(perturbed, dtype=torch.float32)
    ticket = ObjectStorePublisher(timeout_s=60.0).publish(model.named_parameters(), version=2)
    seconds = runner.load_weights(ticket)
    assert set(seconds) == {"gather", "put", "load"}
    rollouts = runner.sample(TASKS, rollouts=4, temperature=1.0, seed=0, weight_version=2)
    assert set(rollouts["weight_version"].to_pylist()) == {2}
    assert largest_gap(perturbed, rollouts, 1.0) < 1e-4


def test_a_saved_model_replaces_all_weights_too(runner, tiny_model, perturbed):
    runner.load_model(str(tiny_model), version=1)
    runner.load_model(str(perturbed), version=2)
    rollouts = runner.sample(TASKS, rollouts=2, temperature=1.0, seed=0, weight_version=2)
    assert largest_gap(perturbed, rollouts, 1.0) < 1e-4


def test_the_ranks_of_sampled_tokens_are_not_counted(runner):
    from vllm import SamplingParams

    [request] = runner.llm.generate(
        [{"prompt_token_ids": [5, 6, 7]}],
        SamplingParams(max_tokens=4, temperature=1.0, logprobs=0, ignore_eos=True),
        use_tqdm=False,
    )
    tokens = [token for step in request.outputs[0].logprobs for token in step.values()]
    assert [token.rank for token in tokens] == [0] * 4  # counted, the likeliest has rank 1
    assert all(token.logprob < 0 for token in tokens)


def test_a_runner_sleeps_until_it_is_given_weights(runner, tiny_model, perturbed):
    runner.load_model(str(tiny_model), version=1)
    for _ in range(2):
        runner.sleep()
    with pytest.raises(StaleWeightsError, match="version None"):
        runner.sample(TASKS, rollouts=1, temperature=0.0, seed=0, weight_version=1)
    assert runner.llm.llm_engine.is_sleeping()
    runner.load_model(str(perturbed), version=2)
    assert not runner.llm.llm_engine.is_sleeping()
    rollouts = runner.sample(TASKS, rollouts=2, temperature=1.0, seed=0, weight_version=2)
    assert largest_gap(perturbed, rollouts, 1.0) < 1e-4


def test_the_same_seed_gives_the_same_rollouts_and_another_seed_others(runner, tiny_model):
    runner.load_model(str(tiny_model), version=3)

    def replies(seed):
        table = runner.sample(TASKS, rollouts=4, temperature=1.0, seed=seed, weight_version=3)
        return table["reply_ids"].to_pylist()

    assert replies(7) == replies(7) != replies(8)


def test_tasks_asked_again_draw_by_their_numbers_not_as_others_did(runner, tiny_model):
    runner.load_model(str(tiny_model), version=3)

    def replies(seed, numbers):
        options = {"rollouts": 4, "temperature": 1.0, "weight_version": 3}
        table = runner.sample(TASKS[-1:], seed=seed, numbers=numbers, **options)
        return table["reply_ids"].to_pylist()

    assert replies(7, [1]) == replies(8, [0]) != replies(7, [0])


def test_a_runner_never_samples_with_weights_of_another_version(runner, tiny_model):
    runner.load_model(str(tiny_model), version=4)
    with pytest.raises(StaleWeightsError, match="version 4, version 5 was asked for"):
        runner.sample(TASKS, rollouts=1, temperature=0.0, seed=0, weight_version=5)


def test_greedy_answers_are_asked_for_once(runner, tiny_model):
    runner.load_model(str(tiny_model), version=6)
    with pytest.raises(ConfigError, match="greedy"):
        runner.sample(TASKS, rollouts=2, temperature=0.0, seed=0, weight_version=6)


def test_a_runner_works_without_targets_and_its_prompts_never_tell_them(runner, tiny_model):
    runner.load_model(str(tiny_model), version=7)
    task = RankTask("u2/1", "Likes Alpha.")
    rollouts = runner.sample([task], rollouts=1, temperature=0.0, seed=0, weight_version=7)
    prompt = rollouts["prompt"][0].as_py()
    assert prompt.count("Delta") == 1  # among the candidates, and nowhere else
    assert "chose" not in prompt.split("\n\n", 1)[1]


def test_schema_of_rollouts_survives_parquet(runner, tiny_model, tmp_path):
    runner.load_model(str(tiny_model), version=8)
    rollouts = runner.sample(TASKS, rollouts=2, temperature=1.0, seed=0, weight_version=8)
    pq.write_table(rollouts, tmp_path / "r.parquet")
    assert pq.read_table(tmp_path / "r.parquet").equals(rollouts)


# The last: a process has room for one engine at work.
def test_a_compiled_engine_samples_with_the_weights_that_it_got_last(config, perturbed):
    config = config.copy(copy_frozen=False).env_runners(compile_engine=True)
    runner = VLLMEnvRunner(config=config)
    try:
        assert not runner.llm.llm_engine.vllm_config.model_config.enforce_eager
        runner.load_model(config.model_path, version=1)
        runner.sample(TASKS, rollouts=1, temperature=1.0, seed=0, weight_version=1)
        runner.load_model(str(perturbed), version=2)
        rollouts = runner.sample(TASKS, rollouts=4, temperature=1.0, seed=0, weight_version=2)
    finally:
        runner.stop()
    assert largest_gap(perturbed, rollouts) < 1e-4

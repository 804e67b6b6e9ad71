"""What is told before anything starts: a model's size, and what can't work."""

import math
from pathlib import Path

import pytest
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Qwen3MoeConfig,
    T5Config,
)

from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask
from starec_ray.data.dataset import Dataset
from starec_ray.data.prepare import prepare
from starec_ray.errors import ConfigError
from starec_ray.jobs.plan import (
    check_data,
    check_learnable,
    check_room,
    count_parameters,
    print_plan,
    updates_until_zero,
)
from starec_ray.jobs.train import train
from starec_ray.models.resolve import load_tokenizer
from tests.tiny_recipe import tiny_recipe


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (
            {"max_rank_tokens": 8},
            "max_rank_tokens is 8, but a whole ranking of a train case takes up to",
        ),
        ({"max_model_len": 60}, "the prompt takes .* Raise max_model_len"),
    ],
)
def test_a_prompt_or_a_reply_without_room_is_told_before_anything_starts(
    section, told, small_world, tiny_model
) -> None:
    recipe = tiny_recipe(
        small_world, tiny_model, None, model=section | {"constrained_decoding": True}
    )
    with pytest.raises(ConfigError, match=told):
        check_data(recipe, Dataset.load(small_world))


def test_reflections_that_could_never_be_made_are_told_of(tiny_model, tmp_path) -> None:
    users = {"train_users": 4, "validation_users": 2, "test_users": 2, "simulated_users": 20}
    prepare("synthetic", tmp_path / "data", rounds=1, negatives=3, **users)
    recipe = tiny_recipe(tmp_path / "data", tiny_model, None, training={"reflect_share": 0.5})
    with pytest.raises(ConfigError, match=r"reflect_share is 0.5, but no .* --rounds 2 or more"):
        check_data(recipe, Dataset.load(tmp_path / "data"))


def write_capped_model(tiny_model: Path, folder: Path) -> Path:
    """With logits that the learner doesn't know."""
    vocabulary = AutoConfig.from_pretrained(tiny_model).vocab_size
    config = Gemma2Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=1
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_a_model_that_cannot_be_trained_is_told_of_before_anything_starts(
    small_world, tiny_model, tmp_path
) -> None:
    model = write_capped_model(tiny_model, tmp_path / "model")
    recipe = tiny_recipe(small_world, model, None)
    with pytest.raises(ConfigError, match=r"'gemma2'.*final_logit_softcapping"):
        print_plan(recipe, Console(quiet=True))
    with pytest.raises(ConfigError, match=r"'gemma2'.*final_logit_softcapping"):
        train(recipe, tmp_path / "run", Console(quiet=True))


def test_a_model_is_looked_at_without_memory_for_its_weights(tmp_path) -> None:
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 8192}
    Qwen3MoeConfig(hidden_size=8192, num_hidden_layers=64, **experts).save_pretrained(tmp_path)
    for part in ("tokenizer.json", "model.safetensors"):
        (tmp_path / part).touch()
    check_learnable(str(tmp_path), 2048)
    parameters, _ = count_parameters(str(tmp_path))
    assert parameters > 1e12


def test_a_model_of_another_kind_is_told_of(monkeypatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda folder: T5Config())
    with pytest.raises(ConfigError, match="'owner/t5' is no causal language model"):
        check_learnable("owner/t5", 2048)


def test_the_embedded_models_size_is_counted_from_its_config() -> None:
    parameters, origin = count_parameters("smollm2-135m-instruct")
    assert (parameters, origin) == (134_515_008, "embedded")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7_000_000_000),
        ("Qwen/Qwen2.5-0.5B", 500_000_000),
        ("owner/SmolLM2-360M-Instruct", 360_000_000),
        ("owner/phi-v2", 0),
    ],
)
def test_where_the_hub_is_out_of_reach_the_name_tells_the_size(
    name: str, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_reach(folder: str) -> None:
        raise OSError("offline")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", out_of_reach)
    found, origin = count_parameters(name)
    assert found == parameters
    assert ("by its name" in origin) == bool(parameters)


@pytest.mark.parametrize(
    ("lr", "updates"),
    [
        (1e-5, math.inf),
        ([[0, 1e-5], [5, 1e-6]], math.inf),
        ([[0, 1e-5], [16, 1e-5], [28, 0.0]], 28),
        ([[0, 0.0], [5, 1e-5], [10, 0.0], [20, 0.0]], 10),
    ],
)
def test_a_schedule_that_ends_at_zero_teaches_until_then(lr, updates) -> None:
    assert updates_until_zero(lr) == updates


def test_iterations_that_would_learn_nothing_are_refused(small_world, tiny_model) -> None:
    recipe = tiny_recipe(small_world, tiny_model, None, training={"lr": [[0, 1e-3], [3, 0.0]]})
    recipe.run.iterations = 3
    check_data(recipe, Dataset.load(small_world))
    recipe.run.iterations = 4
    with pytest.raises(ConfigError, match=r"0 from iteration 4 of stage two on.*iterations is 4"):
        check_data(recipe, Dataset.load(small_world))


def test_the_longest_reply_of_all_cases_is_what_has_to_have_room(small_world, tiny_model) -> None:
    recipe = tiny_recipe(small_world, tiny_model, None, model={"constrained_decoding": True})
    dataset = Dataset.load(small_world)
    agent, tokenizer = Agent.from_config(recipe.config, dataset), load_tokenizer(str(tiny_model))
    forms = [agent.reply_form(RankTask(i, ""), tokenizer) for i in dataset.case_ids("test")]
    longest = max(form.longest for form in forms if form)
    recipe.config.max_rank_tokens = longest
    check_room(recipe.config, agent, tokenizer, ["test"])
    recipe.config.max_rank_tokens = longest - 1
    with pytest.raises(ConfigError, match=f"takes up to {longest} tokens"):
        check_room(recipe.config, agent, tokenizer, ["test"])

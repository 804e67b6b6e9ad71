"""What a dry run says of a model's size."""

import pytest
from transformers import Gemma2Config

from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask
from starec_ray.data.dataset import Dataset
from starec_ray.errors import ConfigError
from starec_ray.jobs.plan import check_data, check_model, check_room, count_parameters
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


def test_a_model_that_cannot_be_trained_is_told_of_before_anything_starts(tmp_path) -> None:
    Gemma2Config(num_hidden_layers=1).save_pretrained(tmp_path)
    for part in ("tokenizer.json", "model.safetensors"):
        (tmp_path / part).touch()
    with pytest.raises(ConfigError, match=r"'gemma2': .* final_logit_softcapping"):
        check_model(str(tmp_path))


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

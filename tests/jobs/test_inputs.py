"""Data, traces and schedules that a run would stop at are told of before anything starts."""

import math

import pytest

from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask
from starec_ray.data.dataset import Dataset
from starec_ray.data.prepare import prepare
from starec_ray.errors import ConfigError
from starec_ray.jobs.inputs import check_data, check_room, updates_until_zero
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

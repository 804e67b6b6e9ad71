"""What the other tests of these parts leave open."""

import json
import shutil

import pytest

from starec_ray.config.identity import MODEL, identity
from starec_ray.config.recipe import build, changed_keys, load_recipe, resolved_sections
from starec_ray.data.store import TABLES
from starec_ray.errors import ConfigError
from tests.config.test_recipe import RECIPES


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"env_runners": {"weight_transfer": "nccl", "num_gpus_per_env_runner": 1}},
            "weight_transfer is 'nccl'; it takes a GPU for each learner and each runner",
        ),
        (
            {
                "env_runners": {"weight_transfer": "nccl"},
                "learners": {"num_gpus_per_learner": 1},
            },
            "weight_transfer is 'nccl'; it takes a GPU for each learner and each runner",
        ),
        (
            {
                "env_runners": {"weight_transfer": "gloo"},
                "learners": {"num_gpus_per_learner": 1},
            },
            "weight_transfer is 'gloo'; it is for CPUs",
        ),
        (
            {"training": {"max_staleness": 1}, "env_runners": {"sleep_while_learning": True}},
            "sleep_while_learning is True; with max_staleness above 0",
        ),
        (
            {"env_runners": {"num_gpus_per_env_runner": 2}},
            "tensor_parallel_size is 1; a runner has 2 GPUs.*it must be 2",
        ),
        (
            {"env_runners": {"num_gpus_per_env_runner": 1, "tensor_parallel_size": 2}},
            "tensor_parallel_size is 2; a runner has 1 GPUs.*it must be 1",
        ),
        (
            {"model": {"constrained_decoding": True, "think_before_ranking": True}},
            "constrained_decoding leaves no room for a rationale",
        ),
        ({"model": {"max_reflect_tokens": 2048}}, "max_reflect_tokens is 2048.*max_model_len"),
        ({"anchor": {"trace_weights": {"ranks": 1.0}}}, "trace_weights has ranks: 1.0"),
        ({"anchor": {"trace_weights": {"rank": -1.0}}}, "trace_weights has rank: -1.0"),
        ({"run": {"ray": {"num_cpus": -1}}}, "run.ray.num_cpus is -1"),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_is_wrong(sections, message):
    with pytest.raises(ConfigError, match=message):
        build(sections)


def test_a_run_without_an_anchor_stage_needs_no_traces():
    assert build({"anchor": {"anchor_epochs": 0, "num_traces": 0}}).config.num_traces == 0


CHANGES = {
    "data": {"max_history": None},
    "model": {
        "name": "other/model",
        "reply_format": "titles",
        "item_attributes": [],
        "history_shown": 3,
    },
    "anchor": {"num_traces": 3, "held_out_trace_share": 0.3, "trace_weights": {"rank": 2.0}},
    "rewards": {"reward_shape": "ndcg"},
    "training": {"temperature": 0.5, "cases_per_iteration": 3, "reflect_share": 0.5},
}


@pytest.mark.parametrize("text", ["training: {3: 1}", "3: {a: 1}", "null: {a: 1}", "run: {on: 1}"])
def test_a_key_that_is_no_text_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match="unknown"):
        load_recipe(tmp_path / "r.yaml")


FIXED = [
    (section, key, value)
    for section, keys in CHANGES.items()
    for key, value in keys.items()
    if value is not None
]


@pytest.mark.parametrize(("section", "key", "value"), FIXED)
def test_a_run_that_goes_on_may_not_change_what_it_learns_or_how(section, key, value):
    before, now = (resolved_sections(build(given)) for given in ({}, {section: {key: value}}))
    [told] = changed_keys(before, now)
    assert told == f"{section}.{key} was {before[section][key]!r} and is {value!r}"


def test_the_seed_of_a_run_is_that_of_its_algorithm():
    assert build({"run": {"seed": 7}}).config.seed == 7


@pytest.mark.parametrize("name", [name for name in TABLES if name != "interactions"])
def test_every_table_that_is_learned_from_is_a_part_of_a_runs_identity(
    name, small_world, tiny_model, tmp_path
):
    def found(folder) -> str:
        config = build({"data": {"path": str(folder)}, "anchor": {"traces": []}}).config
        config.model_path = str(tiny_model)
        return identity(config)["inputs"]["data.path"]

    other = shutil.copytree(small_world, tmp_path / "other")
    assert found(other) == found(small_world)
    with (other / f"{name}.parquet").open("ab") as file:
        file.write(b"more")
    assert found(other) != found(small_world)


def test_the_shape_of_the_model_and_the_seed_are_parts_of_a_runs_identity(
    small_world, tiny_model, tmp_path
):

    def found(model, seed: int = 0) -> dict:
        sections = {"data": {"path": str(small_world)}, "run": {"seed": seed}}
        config = build(sections).config
        config.model_path = str(model)
        return identity(config)

    other = shutil.copytree(tiny_model, tmp_path / "model")
    shape = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(shape | {"dtype": "bfloat16"}))
    assert found(other) == found(tiny_model)  # another machine may be fast at another
    (other / "config.json").write_text(json.dumps(shape | {"intermediate_size": 512}))
    assert found(other)["inputs"][MODEL] != found(tiny_model)["inputs"][MODEL]
    assert found(tiny_model, seed=1)["settings"]["run.seed"] == 1

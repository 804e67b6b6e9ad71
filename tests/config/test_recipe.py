"""Recipes: what is in them reaches the configuration; what is wrong is named."""

import math
from pathlib import Path

import numpy as np
import pytest

from starec_ray.config import STARecConfig
from starec_ray.config.checks import RLLIB_UNUSED
from starec_ray.config.recipe import build, changed_keys, load_recipe, resolved_sections
from starec_ray.errors import ConfigError
from starec_ray.training.traces import BUNDLED_TRACES, TraceSource

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_ready_recipes_are_valid(path):
    recipe = load_recipe(path)
    assert recipe.config.cases_per_iteration > 0


def test_a_recipe_and_its_overrides_reach_the_configuration(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("training: {lr: 1.0e-5, group_size: 4}\nrun: {seed: 3}\n")
    recipe = load_recipe(path, ["training.lr=2.0e-5", "reward_shape=ndcg", "run.iterations=7"])
    assert recipe.config.lr == 2e-5
    assert recipe.config.group_size == 4
    assert recipe.config.reward_shape == "ndcg"
    assert recipe.config.seed == 3
    assert recipe.run.iterations == 7
    assert recipe.sections["training"]["lr"] == 2e-5


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"trainning": {}}, "did you mean 'training'"),
        ({"training": {"num_epochs": 4}}, "num_epochs is RLlib's .*: .* one update"),
        ({"training": {"group_sise": 4}}, "training.group_sise; did you mean 'group_size'"),
        ({"training": {"group_size": "four"}}, "group_size is 'four'; it must be: whole number"),
        ({"training": {"group_size": True}}, "group_size is True"),
        ({"training": {"group_size": 0}}, "group_size is 0; it must be 2 or more"),
        ({"model": {"reply_format": "poem"}}, "reply_format is 'poem'.*grades, titles"),
        ({"model": {"dtype": "float16"}}, "dtype is 'float16'.*bfloat16"),
        ({"model": {"item_attributes": ["colour"]}}, "item_attributes has colour"),
        ({"rewards": {"reward_shape": "gold"}}, "reward_shape is 'gold'.*tiers"),
        ({"learners": {"zero_stage": 4}}, "zero_stage is 4"),
        ({"env_runners": {"num_env_runners": 0}}, "num_env_runners is 0"),
        ({"env_runners": {"gpu_memory_utilization": 0}}, "gpu_memory_utilization is 0"),
        (
            {"learners": {"custom_resources_per_learner": {"a": "many"}}},
            "custom_resources_per_learner has a: 'many'",
        ),
        (
            {"env_runners": {"custom_resources_per_env_runner": {"GPU": 1}}},
            "custom_resources_per_env_runner has GPU: 1.*keys of their own",
        ),
        ({"anchor": {"trace_weights": {"rank": math.nan}}}, "trace_weights has rank: nan"),
        (
            {"anchor": {"held_out_trace_share": 1.0}},
            "held_out_trace_share is 1.0; it must be 0 or more and below 1",
        ),
        ({"model": {"max_rank_tokens": 2048}}, "max_rank_tokens is 2048.*window of 2048: lower it"),
        ({"run": {"mode": "max"}}, "unknown key run.mode"),
        ({"run": {"ray": {"foo": 1}}}, "run.ray has foo"),
        ({"run": {"ray": {"num_cpu": 1}}}, "num_cpu, .*did you mean 'num_cpus'"),
        ({"run": {"ray": {"num_cpus": math.nan}}}, "run.ray.num_cpus is nan"),
        ({"training": {"reflect_share": 1.5}}, "reflect_share is 1.5"),
        ({"training": {"temperature": 0.001}}, "temperature is 0.001; it must be 0.01"),
        ({"training": {"clip_low": 5.0}}, "clip_low is 5.0.*below 1"),
        (
            {"training": {"kl_coeff": 0.0}, "fault_tolerance": {"max_kl": 1.0}},
            "max_kl is 1.0; with kl_coeff 0",
        ),
        ({"anchor": {"num_traces": 0}}, "num_traces is 0; nothing is left to learn"),
        (
            {"learners": {"num_gpus_per_learner": 2}},
            "num_gpus_per_learner is 2; it must be from 0 to 1 .*take more learners",
        ),
        (
            {
                "learners": {"num_gpus_per_learner": 1, "num_learners": 0},
                "env_runners": {"num_gpus_per_env_runner": 1},
            },
            "num_learners is 0; the driver's own learner",
        ),
        (
            {"env_runners": {"num_gpus_per_env_runner": 0.6}},
            "gpu_memory_utilization is 0.85; a runner has 0.6 of a GPU",
        ),
        (
            {
                "learners": {"num_gpus_per_learner": 0.4, "num_learners": 3},
                "env_runners": {"num_gpus_per_env_runner": 0.6, "gpu_memory_utilization": 0.5},
            },
            "num_learners is 3; two with 0.4 of a GPU could come onto one.* at most 1 here",
        ),
        (
            {
                "learners": {"num_gpus_per_learner": 0.4, "num_learners": 2},
                "env_runners": {"num_env_runners": 2},  # on CPU cores
            },
            "num_learners is 2; two with 0.4 of a GPU could come onto one.* at most 1 here",
        ),
        (
            {"env_runners": {"num_gpus_per_env_runner": 0.5, "gpu_memory_utilization": 0.5}},
            "num_gpus_per_env_runner is 0.5; two engines would come onto one GPU",
        ),
        ({"training": {"max_staleness": -1}}, "max_staleness is -1; it must be 0 or more"),
        (
            {"training": {"max_staleness": 1}, "env_runners": {"weight_transfer": "gloo"}},
            "weight_transfer is 'gloo'.*must be object_store",
        ),
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


def test_a_number_of_the_python_api_may_be_numpys_and_must_be_one():
    STARecConfig().training(group_size=np.int64(4), grad_clip=np.float32(0.5)).validate()
    with pytest.raises(ConfigError, match="grad_clip is None; it must be a finite number"):
        STARecConfig().training(grad_clip=None).validate()


@pytest.mark.parametrize("field", RLLIB_UNUSED)
def test_a_setting_of_rllibs_that_would_do_nothing_is_refused(field):
    config = STARecConfig()
    setattr(config, field, "other")
    with pytest.raises(ConfigError, match=f"{field.lstrip('_')} is 'other'.*{RLLIB_UNUSED[field]}"):
        config.validate()


def test_the_copy_that_rllib_makes_for_evaluation_is_left_to_it():
    config = STARecConfig().evaluation(evaluation_interval=1)
    config.get_evaluation_config_object().validate()


def test_an_unknown_override_names_its_nearest_neighbour(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("")
    with pytest.raises(ConfigError, match="did you mean 'group_size'"):
        load_recipe(path, ["groupsize=4"])
    with pytest.raises(ConfigError, match="write key=value"):
        load_recipe(path, ["group_size"])


@pytest.mark.parametrize("text", ["training: {3: 1}", "3: {a: 1}", "null: {a: 1}", "run: {on: 1}"])
def test_a_key_that_is_no_text_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match="unknown"):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_recipe_says_where_ready_ones_are(tmp_path):
    with pytest.raises(ConfigError, match=r"recipes/"):
        load_recipe(tmp_path / "none.yaml")


def test_a_missing_data_folder_is_found_before_anything_starts(tmp_path):
    config = STARecConfig().data(path=tmp_path).model(name="smollm2-135m-instruct")
    with pytest.raises(ConfigError, match="starec data prepare"):
        config.resolve()


def test_the_fluent_sections_set_plain_attributes():
    config = (
        STARecConfig()
        .data(path="somewhere")
        .model(name="a/b", reply_format="titles")
        .anchor(anchor_lr=1e-5)
        .rewards(reward_shape="ndcg")
        .training(lr=1e-6, group_size=4)
        .env_runners(num_env_runners=2)
        .learners(num_learners=2, zero_stage=3)
        .evaluation(evaluation_interval=5)
        .fault_tolerance(update_timeout_s=10.0)
    )
    assert (config.model_name, config.reply_format, config.zero_stage) == ("a/b", "titles", 3)
    assert (config.num_env_runners, config.update_timeout_s) == (2, 10.0)
    assert (config.evaluation_interval, config.validation_cases) == (5, 100)


def test_a_number_that_yaml_takes_for_text_is_a_number_all_the_same():
    recipe = build({"training": {"lr": "1e-5"}})
    assert recipe.config.lr == 1e-5
    assert recipe.sections["training"]["lr"] == 1e-5


def test_a_learning_rate_may_be_a_schedule_from_step_0_on():
    recipe = build({"training": {"lr": [[0, "6e-5"], [20, 6e-5], [30, 0.0]]}})
    assert recipe.config.lr == [[0, 6e-5], [20, 6e-5], [30, 0.0]]


@pytest.mark.parametrize(
    "lr",
    [
        [],
        [[0, 1e-5]],
        [[1, 1e-5], [2, 0.0]],
        [[0, 1e-5], [0, 0.0]],
        [[0, -1.0], [1, 0.0]],
        [[0, math.inf], [1, 0.0]],
        0.0,
    ],
)
def test_what_is_no_learning_rate_is_refused(lr):
    with pytest.raises(ConfigError, match=r"lr is"):
        build({"training": {"lr": lr}})


def test_credit_by_candidate_is_for_constrained_grades():
    rewards = {"rewards": {"credit_assignment": "candidate"}}
    fast = {"think_before_ranking": False, "constrained_decoding": True}
    assert build(rewards | {"model": fast}).config.credit_assignment == "candidate"
    for model in ({"reply_format": "grades"}, fast | {"reply_format": "titles"}):
        with pytest.raises(
            ConfigError, match=r"credit_assignment is 'candidate'; only constrained"
        ):
            build(rewards | {"model": model})


def test_resolved_sections_say_every_setting_and_are_a_recipe_again():
    recipe = build({"model": {"name": "some/model"}, "run": {"iterations": 7}})
    sections = resolved_sections(recipe)
    assert sections["model"]["name"] == "some/model"
    assert sections["training"]["group_size"] == recipe.config.group_size
    again = build(sections)
    assert resolved_sections(again) == sections
    assert again.run == recipe.run


@pytest.mark.parametrize(("key", "value"), [("checkpoint_every", -1), ("evaluation_cases", -5)])
def test_a_run_setting_out_of_range_is_refused(key, value):
    with pytest.raises(ConfigError, match=rf"run\.{key} is {value}"):
        build({"run": {key: value}})


def test_a_run_that_goes_on_may_change_how_long_and_fast_but_not_what_it_trains():
    before = resolved_sections(build({"training": {"lr": 1e-4}, "run": {"seed": 1}}))
    slower = build({"training": {"lr": 5e-5, "kl_coeff": 0.1}, "run": {"seed": 1, "iterations": 7}})
    slower.config.num_env_runners = 3
    slower.config.max_kl = 2.0
    assert changed_keys(before, resolved_sections(slower)) == []
    other = {"seed": 2, "metric": "mrr"}
    assert changed_keys(
        before, resolved_sections(build({"training": {"group_size": 4}, "run": other}))
    ) == [
        "training.group_size was 8 and is 4",
        "run.seed was 1 and is 2",
        "run.metric was 'ndcg@10' and is 'mrr'",
    ]


CHANGES = {
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
FIXED = [(section, key, value) for section, keys in CHANGES.items() for key, value in keys.items()]


@pytest.mark.parametrize(("section", "key", "value"), FIXED)
def test_a_run_that_goes_on_may_not_change_what_it_learns_or_how(section, key, value):
    before, now = (resolved_sections(build(given)) for given in ({}, {section: {key: value}}))
    [told] = changed_keys(before, now)
    assert told == f"{section}.{key} was {before[section][key]!r} and is {value!r}"


def test_a_run_without_an_anchor_to_measure_by_can_not_begin_to():
    without = resolved_sections(build({"training": {"kl_coeff": 0.0}}))
    with_one = resolved_sections(build({"training": {"kl_coeff": 1e-3}}))
    assert changed_keys(without, without) == changed_keys(with_one, without) == []
    assert changed_keys(without, with_one) == ["training.kl_coeff was 0.0 and is 0.001"]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ("/a/m", "/b/m", False),
        ("~/m", "owner/name", False),  # a hub's model may be brought into a folder, and back
        ("owner/name", "/b/m", False),
        ("owner/name", "owner/other", True),
        ("tiny", "smollm2-135m-instruct", True),
    ],
)
def test_a_models_folder_may_lie_elsewhere_and_its_name_stays(before, now, told):
    old, new = (resolved_sections(build({"model": {"name": name}})) for name in (before, now))
    assert bool(changed_keys(old, new)) == told


@pytest.mark.parametrize("field", ["group_size", "cases_per_iteration", "max_staleness"])
def test_a_fraction_where_a_whole_number_belongs_is_refused_from_python_too(field):
    with pytest.raises(ConfigError, match=f"{field} is 4.0; it must be a whole number"):
        STARecConfig().training(**{field: 4.0}).validate()


def test_the_bundled_traces_are_called_so_wherever_the_program_lies():
    assert str(TraceSource.of(str(BUNDLED_TRACES))) == "bundled"
    assert str(TraceSource.of("bundled:reflect")) == "bundled:reflect"

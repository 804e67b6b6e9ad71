"""Search spaces are read, checked against the recipe, and become Tune's domains."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from ray.tune.search.sample import Categorical, Float, Integer
from typer.testing import CliRunner

from starec_ray.cli import app
from starec_ray.config.fields import attribute_of
from starec_ray.config.recipe import build, load_recipe, with_values
from starec_ray.errors import ConfigError
from tune.space import DOMAINS, SweepSettings, load_space

RECIPE = build({"training": {"lr": 1e-5}})


def read(tmp_path, content):
    path = tmp_path / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_space(path, RECIPE)


def test_each_field_becomes_a_domain_under_the_attribute_that_holds_it(tmp_path):
    space = read(
        tmp_path,
        {
            "sweep": {"num_samples": 3, "scheduler": "none"},
            "space": {
                "training.lr": {"loguniform": [1e-6, 1e-4]},
                "training.group_size": {"randint": [2, 9]},
                "model.name": {"choice": ["a/b", "c/d"]},
                "run.seed": {"choice": [1, 2]},
            },
        },
    )
    assert (space.settings.num_samples, space.settings.scheduler) == (3, "none")
    domains = space.domains()
    assert set(domains) == {"lr", "group_size", "model_name", "seed"}
    assert isinstance(domains["lr"], Float) and (domains["lr"].lower, domains["lr"].upper) == (
        1e-6,
        1e-4,
    )
    assert isinstance(domains["group_size"], Integer)
    assert isinstance(domains["model_name"], Categorical)
    assert domains["model_name"].categories == ["a/b", "c/d"]


def pbt(fields: dict, **settings: str) -> dict:
    return {"space": fields, "sweep": {"scheduler": "pbt", **settings}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("- 1", "holds a section `space`"),
        ({"space": {}}, "nothing to vary"),
        ({"space": {"training.lr": {"choice": [1e-5]}}, "spce": {}}, "unknown section 'spce'"),
        ({"space": {"training.l": {"choice": [1e-5]}}}, "unknown key training.l; did you mean"),
        ({"space": {"run.iterations": {"choice": [1]}}}, "run.iterations is no field to vary"),
        ({"space": {"training.lr": 1e-5}}, "write one of uniform, loguniform"),
        ({"space": {"training.lr": {"uniform": [1e-5]}}}, "uniform takes 2 numbers"),
        ({"space": {"training.lr": {"loguniform": [0, 1]}}}, "from low to high"),
        ({"space": {"training.lr": {"uniform": [1e-4, 1e-5]}}}, "from low to high"),
        ({"space": {"training.group_size": {"choice": [8, 1]}}}, "of 1 makes no recipe"),
        ({"space": {"training.group_size": {"uniform": [2, 8]}}}, "2.0 makes no recipe"),
        (
            {"space": {"training.lr": {"choice": [1e-5]}}, "sweep": {"num_samples": 0}},
            "sweep.num_samples is 0",
        ),
        (
            {"space": {"training.lr": {"choice": [1e-5]}}, "sweep": {"searcher": "bayes"}},
            "sweep.searcher is 'bayes'",
        ),
        (
            {"space": {"training.lr": {"grid": [1e-5]}}, "sweep": {"searcher": "optuna"}},
            "training.lr is a grid",
        ),
        ({"space": {"training.lr": {"uniform": [1e-5, 1e-5]}}}, "from low to high"),
        (
            {"space": {"training.lr": {"choice": [1e-5]}}, "sweep": {"max_concurrent": -1}},
            "sweep.max_concurrent is -1",
        ),
        (
            {"space": {"training.lr": {"choice": [1e-5]}}, "sweep": {"grace_iterations": 0}},
            "sweep.grace_iterations is 0",
        ),
        (pbt({"model.history_shown": {"choice": [5, 10]}}), "model.history_shown can't change wit"),
        (pbt({"data.path": {"choice": ["a", "b"]}}), "data.path can't change within a trial"),
        (pbt({"anchor.anchor_lr": {"uniform": [0.1, 0.2]}}), "anchor.anchor_lr can't change"),
        (pbt({"learners.num_learners": {"choice": [1, 2]}}), "learners.num_learners can't"),
        (pbt({"run.seed": {"choice": [1, 2]}}), "run.seed can't change within a trial"),
        (pbt({"training.kl_coeff": {"choice": [0.1, 0]}}), "they keep no anchor"),
        (pbt({"training.kl_coeff": {"uniform": [0, 0.1]}}), "they keep no anchor"),
        (pbt({"training.lr": {"grid": [1e-5]}}), "training.lr is a grid"),
        (pbt({"training.lr": {"choice": [1e-5]}}, searcher="optuna"), "takes the searcher random"),
    ],
)
def test_what_is_wrong_with_a_space_is_said_before_anything_starts(tmp_path, content, told):
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, content)


@pytest.mark.parametrize("sweep", ["[1]", "3", "{3: 1}"])
def test_a_sweep_that_is_no_section_is_refused(tmp_path, sweep):
    (tmp_path / "space.yaml").write_text(
        f"sweep: {sweep}\nspace: {{training.lr: {{choice: [1.0e-5]}}}}"
    )
    with pytest.raises(ConfigError, match=r"may hold `sweep`|unknown key sweep\.3"):
        load_space(tmp_path / "space.yaml", build({}))


def test_a_folder_is_no_space(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        load_space(tmp_path, build({}))


def test_numbers_that_yaml_takes_for_text_are_numbers_in_a_list_too(tmp_path):
    space = read(tmp_path, "space: {training.lr: {choice: [1e-6, 1e-5]}}")  # for want of a dot
    assert space.domains()["lr"].categories == [1e-6, 1e-5]


def test_a_population_may_vary_what_a_copy_can_go_on_with(tmp_path):
    fields = {
        "training.kl_coeff": {"choice": [0.01, 0.1]},
        "rewards.reward_shape": {"choice": ["tiers", "ndcg"]},
    }
    assert read(tmp_path, pbt(fields)).bounds() == {}


def test_a_population_without_any_anchor_is_one_too(tmp_path):
    assert read(
        tmp_path, pbt({"training.kl_coeff": {"choice": [0]}, "training.lr": {"choice": [1e-5]}})
    )


@pytest.mark.parametrize("name", sorted(path.name for path in Path("recipes/spaces").iterdir()))
def test_the_ready_spaces_fit_the_recipes_of_their_names(name):
    assert load_space(f"recipes/spaces/{name}", load_recipe(f"recipes/{name}")).domains()


def test_values_make_a_recipe_again_and_leave_the_first_as_it_was():
    changed = with_values(RECIPE.sections, {"training.lr": 1e-3, "model.name": "a/b"})
    assert build(changed).config.lr == 1e-3
    assert changed["model"] == {"name": "a/b"}
    assert RECIPE.sections == {"training": {"lr": 1e-5}}
    assert (attribute_of("model.name"), attribute_of("training.lr")) == ("model_name", "lr")


def test_the_help_of_the_command_shows_what_a_sweep_is_by_default(tmp_path):
    found = CliRunner().invoke(app, ["tune", "--help"], env={"COLUMNS": "120", "NO_COLOR": "1"})
    lines = [line.strip("│ ") for line in found.output.splitlines()]
    first, last = lines.index("sweep:"), lines.index("training.group_size: {choice: [4, 8]}")
    indents = {"sweep:": 0, "space:": 0}
    shown = yaml.safe_load(
        "\n".join(" " * indents.get(line, 2) + line for line in lines[first : last + 1])
    )
    assert set(shown["sweep"]) == set(asdict(SweepSettings()))
    assert SweepSettings(**shown["sweep"]) == SweepSettings()
    read(tmp_path, shown)
    words = set(re.findall(r"\w+", " ".join(lines)))
    assert words >= DOMAINS.keys() | {"asha", "pbt", "none", "random", "optuna"}

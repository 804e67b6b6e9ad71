"""Search spaces are read, checked against the recipe, and become Tune's domains."""

from pathlib import Path

import pytest
import yaml
from ray.tune.search.sample import Categorical, Float, Integer

from starec_ray.errors import ConfigError
from starec_ray.recipe import attribute_of, build, load_recipe, with_values
from tune.space import load_space

RECIPE = build({"training": {"lr": 1e-5}})


def read(tmp_path, content):
    path = tmp_path / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_space(path, RECIPE)


def test_each_field_becomes_a_domain_under_the_attribute_that_holds_it(tmp_path):
    space = read(
        tmp_path,
        {
            "sweep": {"num_samples": 3, "scheduler": "pbt"},
            "space": {
                "training.lr": {"loguniform": [1e-6, 1e-4]},
                "training.group_size": {"randint": [2, 9]},
                "model.name": {"choice": ["a/b", "c/d"]},
            },
        },
    )
    assert (space.settings.num_samples, space.settings.scheduler) == (3, "pbt")
    domains = space.domains()
    assert set(domains) == {"lr", "group_size", "model_name"}
    assert isinstance(domains["lr"], Float) and (domains["lr"].lower, domains["lr"].upper) == (
        1e-6,
        1e-4,
    )
    assert isinstance(domains["group_size"], Integer)
    assert isinstance(domains["model_name"], Categorical)
    assert domains["model_name"].categories == ["a/b", "c/d"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("- 1", "holds a section `space`"),
        ({"space": {}}, "nothing to vary"),
        ({"space": {"training.lr": {"choice": [1e-5]}}, "spce": {}}, "unknown section 'spce'"),
        ({"space": {"training.l": {"choice": [1e-5]}}}, "unknown key training.l; did you mean"),
        ({"space": {"run.seed": {"choice": [1]}}}, "run.seed is no field to vary"),
        ({"space": {"training.lr": 1e-5}}, "write one of uniform, loguniform"),
        ({"space": {"training.lr": {"uniform": [1e-5]}}}, "uniform takes 2 numbers"),
        ({"space": {"training.lr": {"loguniform": [0, 1]}}}, "from low to high"),
        ({"space": {"training.lr": {"uniform": [1e-4, 1e-5]}}}, "from low to high"),
        ({"space": {"training.group_size": {"choice": [8, 1]}}}, "of 1 makes no recipe"),
        ({"space": {"training.group_size": {"uniform": [2, 8.5]}}}, "makes no recipe"),
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
    ],
)
def test_what_is_wrong_with_a_space_is_said_before_anything_starts(tmp_path, content, told):
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, content)


@pytest.mark.parametrize("name", sorted(path.name for path in Path("recipes/spaces").iterdir()))
def test_the_ready_spaces_fit_the_recipes_of_their_names(name):
    assert load_space(f"recipes/spaces/{name}", load_recipe(f"recipes/{name}")).domains()


def test_values_make_a_recipe_again_and_leave_the_first_as_it_was():
    changed = with_values(RECIPE.sections, {"training.lr": 1e-3, "model.name": "a/b"})
    assert build(changed).config.lr == 1e-3
    assert changed["model"] == {"name": "a/b"}
    assert RECIPE.sections == {"training": {"lr": 1e-5}}
    assert (attribute_of("model.name"), attribute_of("training.lr")) == ("model_name", "lr")

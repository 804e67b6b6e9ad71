"""The whole examination of a running Ray: what it asks, and what it can't say yet."""

import shutil

import pytest

from starec_ray.doctor.examine import examine
from tests.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.engine


def findings(recipe, storage, *, may_grow):
    return {f.check: f for f in examine(recipe, [storage], may_grow=may_grow)}


def test_while_the_nodes_that_a_recipe_needs_are_not_up_nothing_is_green_for_them(
    ray_cluster, small_world, tiny_model, tmp_path
):
    recipe = tiny_recipe(small_world, tiny_model, None)
    found = findings(recipe, tmp_path, may_grow=True)
    asked = ("versions", "storage", "data", "model")
    assert [found[check].level for check in asked] == ["good"] * 4
    assert f"6 files in {small_world}" in found["data"].text
    elsewhere = {"custom_resources_per_env_runner": {"env_runner_node": 1}}
    recipe = tiny_recipe(small_world, tiny_model, None, env_runners=elsewhere)
    found = findings(recipe, tmp_path, may_grow=True)
    assert "2 env_runner_nodes are wanted and there are 0" in found["resources"].text
    for check in asked:
        assert found[check].level == "warning"
        assert "nodes that the recipe needs aren't up" in found[check].text
        assert found[check].remedy == "run the doctor again when they are."
    found = findings(recipe, tmp_path, may_grow=False)
    assert found["resources"].level == "bad" and found["data"].level == "good"


def test_a_data_folder_without_one_of_its_tables_is_red(
    ray_cluster, small_world, tiny_model, tmp_path
):
    shutil.copytree(small_world, tmp_path / "data")
    (tmp_path / "data" / "targets.parquet").unlink()
    recipe = tiny_recipe(tmp_path / "data", tiny_model, None)
    found = findings(recipe, tmp_path, may_grow=False)
    assert found["data"].level == "bad"
    assert f"{tmp_path}/data/targets.parquet is not there" in found["data"].text


def test_data_and_a_model_are_looked_at_without_a_recipe(
    ray_cluster, small_world, tiny_model, tmp_path
):
    given = {"data": small_world, "model": str(tiny_model), "may_grow": True}
    found = {f.check: f for f in examine(None, [tmp_path], **given)}
    assert found["data"].text == f"6 files in {small_world}: the same on every node"
    assert found["model"].text.startswith(str(tiny_model)) and found["model"].level == "good"
    given |= {"data": tmp_path, "model": "none"}
    found = {f.check: f for f in examine(None, [tmp_path], **given)}
    assert f"{tmp_path}/manifest.json is not there" in found["data"].text
    assert found["data"].level == found["model"].level == "bad"

"""What a run's checkpoints are told apart by: what it learned from, and how."""

import json
import shutil

import pytest

from starec_ray.checkpoints.changes import changes_of_a_run
from starec_ray.config.identity import MODEL, TOKENIZER, identity
from starec_ray.config.recipe import build
from starec_ray.data.store import TABLES
from starec_ray.training.traces import BUNDLED_TRACES


def test_a_run_goes_on_where_its_inputs_lie_elsewhere(small_world, tiny_model, tmp_path):
    traces = tmp_path / "t.parquet"
    traces.write_bytes(b"a table")

    def inputs(folder, *sources):
        sections = {"data": {"path": str(folder)}, "anchor": {"traces": [*sources]}}
        config = build(sections).config
        config.model_path = str(tiny_model)
        return identity(config)["inputs"]

    moved = shutil.copytree(small_world, tmp_path / "moved")
    copy = shutil.copy(traces, tmp_path / "copy.parquet")
    here = inputs(small_world, f"{traces}:rank", "bundled")
    assert here == inputs(moved, f"{copy}:rank", str(BUNDLED_TRACES))
    assert here != inputs(moved, str(copy), "bundled")
    assert here != inputs(moved, "bundled", f"{copy}:rank")
    with (moved / "targets.parquet").open("ab") as file:
        file.write(b"more")
    assert here["data.path"] != inputs(moved)["data.path"]


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


@pytest.mark.parametrize("change", ["a token", "the template", "how texts are split", "nothing"])
def test_a_models_folder_may_move_but_not_its_tokenizer(change, small_world, tiny_model, tmp_path):
    def found(model) -> dict:
        config = build({"data": {"path": str(small_world)}, "model": {"name": str(model)}}).config
        config.model_path = str(model)
        return identity(config)["settings"]

    moved = shutil.copytree(tiny_model, tmp_path / "model")
    rules = json.loads((moved / "tokenizer.json").read_text())
    if change == "a token":
        vocabulary = rules["model"]["vocab"]
        one, other = list(vocabulary)[-2:]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    elif change == "how texts are split":
        rules["normalizer"] = {"type": "Lowercase"}
    elif change == "the template":
        template = moved / "chat_template.jinja"
        template.write_text(template.read_text() + " ")
    (moved / "tokenizer.json").write_text(json.dumps(rules, indent=1))
    told = changes_of_a_run(found(tiny_model), found(moved))
    assert len(told) == (change != "nothing")
    assert all(text.startswith(f"{TOKENIZER} was '") for text in told)
    older = {key: value for key, value in found(tiny_model).items() if key != TOKENIZER}
    assert not changes_of_a_run(older, found(moved))  # which knows none

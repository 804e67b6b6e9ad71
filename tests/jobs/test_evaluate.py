"""Which users of another data folder a model may know; where an evaluation may be written."""

from functools import partial
from unittest.mock import Mock

import pytest
from rich.console import Console

from starec_ray.data.dataset import Dataset
from starec_ray.data.prepare import prepare
from starec_ray.errors import ConfigError, StorageError
from starec_ray.jobs import evaluate
from starec_ray.jobs.evaluate import evaluate_models, users_trained_on
from tests.tiny_recipe import tiny_recipe

USERS = {"train_users": 20, "validation_users": 5, "test_users": 20, "simulated_users": 60}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same users, dealt out in two ways, and others."""
    root = tmp_path_factory.mktemp("data")
    for name in ("first", "second"):
        prepare("synthetic", root / name, negatives=3, **USERS)
    prepare("synthetic", root / "third", negatives=3, **USERS | {"test_users": 30})
    prepare("synthetic", root / "others", negatives=3, seed=1, **USERS)
    return root


def test_users_that_were_trained_on_are_counted_among_those_evaluated(folders):
    dataset = Dataset.load(folders / "third")
    trained = Dataset.load(folders / "first")
    learned_from = {trained.case(case_id).user_id for case_id in trained.case_ids("train")}
    asked = {dataset.case(case_id).user_id for case_id in dataset.case_ids("test")}
    found = users_trained_on(dataset, "test", 0, str(folders / "first"))
    assert found == len(asked & learned_from) > 0
    assert (
        users_trained_on(Dataset.load(folders / "others"), "test", 0, str(folders / "first")) == 0
    )
    assert users_trained_on(dataset, "train", 0, str(folders / "first")) == 0  # asked for


def test_the_same_split_and_a_folder_that_is_gone_tell_of_none(folders):
    dataset = Dataset.load(folders / "second")
    assert users_trained_on(dataset, "test", 0, str(folders / "first")) == 0
    assert users_trained_on(dataset, "test", 0, str(folders / "gone")) == 0
    assert users_trained_on(dataset, "test", 0, "") == 0
    (folders / "third" / "catalog.parquet").unlink()
    assert users_trained_on(dataset, "test", 0, str(folders / "third")) == 0


def test_rankings_of_other_data_without_room_are_told_before_anything_starts(
    small_world, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "start_ray", Mock(side_effect=AssertionError("it starts")))
    section = {"constrained_decoding": True, "max_rank_tokens": 8}
    recipe = tiny_recipe(small_world, tiny_model, None, model=section)
    with pytest.raises(ConfigError, match="max_rank_tokens is 8, but a whole ranking of a test"):
        evaluate_models({"model": tiny_model}, recipe, tmp_path, Console(quiet=True))


@pytest.mark.parametrize("full", [True, False])
def test_where_nothing_can_be_written_nothing_is_evaluated(
    full, small_world, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "start_ray", Mock(side_effect=AssertionError("it starts")))
    out = tmp_path / "out"
    if full:
        device = partial(open, "/dev/full", "wb", buffering=0)
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **where: device())
    else:
        out.touch()
    recipe = tiny_recipe(small_world, tiny_model, None)
    with pytest.raises(StorageError, match=r"out can't be written: .* room, or .* --out"):
        evaluate_models({"model": tiny_model}, recipe, out, Console(quiet=True))

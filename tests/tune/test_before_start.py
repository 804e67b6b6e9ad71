"""What a sweep's trials would stop at is told of before anything starts."""

from unittest.mock import Mock

import pytest
from rich.console import Console

from starec_ray.data.prepare import prepare
from starec_ray.errors import DataError
from tests.tiny_recipe import tiny_recipe
from tune import sweep as module
from tune.space import Space, SweepSettings
from tune.sweep import sweep

SPACE = Space(SweepSettings(num_samples=1, scheduler="none"), {"training.lr": {"grid": [1e-5]}})
USERS = {"train_users": 4, "validation_users": 2, "test_users": 2, "simulated_users": 20}


class StartsError(Exception):
    """The checks are over."""


@pytest.fixture
def begin(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "start_ray", Mock(side_effect=StartsError))

    def run(**users: int) -> None:
        prepare("synthetic", tmp_path / "data", negatives=3, **USERS | users)
        recipe = tiny_recipe(tmp_path / "data", tiny_model, None, run={"iterations": 1})
        sweep(recipe, SPACE, tmp_path / "sweep", Console(quiet=True))

    return run


def test_data_without_validation_users_are_refused(begin) -> None:
    with pytest.raises(DataError, match="no cases of the split 'validation'"):
        begin(validation_users=0)


def test_data_without_test_users_will_do(begin) -> None:
    with pytest.raises(StartsError):
        begin(test_users=0)

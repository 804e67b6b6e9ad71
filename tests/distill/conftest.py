"""Data that a teacher is asked about."""

from pathlib import Path

import pytest

from starec_ray.data.prepare import prepare


@pytest.fixture(scope="session")
def films(tmp_path_factory) -> Path:
    """Synthetic data of 40 training users, 8 candidates a case."""
    folder = tmp_path_factory.mktemp("distill") / "films"
    protocol = {"train_users": 40, "validation_users": 0, "test_users": 10, "negatives": 7}
    prepare("synthetic", folder, **protocol)
    return folder

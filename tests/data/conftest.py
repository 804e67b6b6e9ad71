from collections.abc import Callable
from pathlib import Path

import pytest

from starec_ray.data.dataset import Dataset
from starec_ray.data.prepare import prepare

# A protocol that a handful of hand-made users can meet.
SMALL = {
    "min_user_interactions": 1,
    "min_item_interactions": 1,
    "train_users": 1,
    "validation_users": 0,
    "test_users": 1,
    "negatives": 2,
    "rounds": 1,
}


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Writes `name=text` files to a fresh folder and gives the folder."""

    def write(texts: dict[str, str | bytes]) -> Path:
        folder = tmp_path / "published"
        folder.mkdir(exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return write


@pytest.fixture
def small_protocol() -> dict[str, int]:
    return dict(SMALL)


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic source as its defaults make it."""
    out = tmp_path_factory.mktemp("data") / "synthetic"
    prepare("synthetic", out)
    return out


@pytest.fixture(scope="session")
def synthetic_dataset(synthetic_folder: Path) -> Dataset:
    return Dataset.load(synthetic_folder)

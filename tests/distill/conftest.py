"""Data that a teacher is asked about, and a small teacher."""

import shutil
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


@pytest.fixture(scope="session")
def echo_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with prompts that end in the question: untrained, it goes on as that ends."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("echo") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(folder)
    return folder

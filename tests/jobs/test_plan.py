"""A model that can't be trained is told of before anything starts."""

from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from starec_ray.errors import ConfigError
from starec_ray.jobs.plan import print_plan
from starec_ray.jobs.train import train
from tests.tiny_recipe import tiny_recipe


def write_capped_model(tiny_model: Path, folder: Path) -> Path:
    """With logits that the learner doesn't know."""
    vocabulary = AutoConfig.from_pretrained(tiny_model).vocab_size
    config = Gemma2Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=1
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_a_model_that_cannot_be_trained_is_told_of_before_anything_starts(
    small_world, tiny_model, tmp_path
) -> None:
    model = write_capped_model(tiny_model, tmp_path / "model")
    recipe = tiny_recipe(small_world, model, None)
    with pytest.raises(ConfigError, match=r"'gemma2'.*final_logit_softcapping"):
        print_plan(recipe, Console(quiet=True))
    with pytest.raises(ConfigError, match=r"'gemma2'.*final_logit_softcapping"):
        train(recipe, tmp_path / "run", Console(quiet=True))

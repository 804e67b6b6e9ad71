"""A model's size, counted without memory for its weights or read from its name."""

import pytest
from transformers import Qwen3MoeConfig, T5Config

from learners.trainable import check_trainable
from starec_ray.errors import ConfigError
from starec_ray.models.parameters import count_parameters, without_weights


def test_a_model_is_looked_at_without_memory_for_its_weights(tmp_path) -> None:
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 8192}
    Qwen3MoeConfig(hidden_size=8192, num_hidden_layers=64, **experts).save_pretrained(tmp_path)
    for part in ("tokenizer.json", "model.safetensors"):
        (tmp_path / part).touch()
    model = without_weights(str(tmp_path))
    check_trainable(model)
    parameters, _ = count_parameters(str(tmp_path), model)
    assert parameters > 1e12


def test_a_model_of_another_kind_is_told_of(monkeypatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda folder: T5Config())
    with pytest.raises(ConfigError, match="'owner/t5' is no causal language model"):
        without_weights("owner/t5")


def test_the_embedded_models_size_is_counted_from_its_config() -> None:
    name = "smollm2-135m-instruct"
    parameters, origin = count_parameters(name, without_weights(name))
    assert (parameters, origin) == (134_515_008, "embedded")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7_000_000_000),
        ("Qwen/Qwen2.5-0.5B", 500_000_000),
        ("owner/SmolLM2-360M-Instruct", 360_000_000),
        ("owner/phi-v2", 0),
    ],
)
def test_where_the_hub_is_out_of_reach_the_name_tells_the_size(
    name: str, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_reach(folder: str) -> None:
        raise OSError("offline")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", out_of_reach)
    found, origin = count_parameters(name, without_weights(name))
    assert found == parameters
    assert ("by its name" in origin) == bool(parameters)

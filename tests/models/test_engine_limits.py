"""Windows and caches that no engine could give are refused before one starts."""

import json
import shutil
from pathlib import Path

import pytest

from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError


@pytest.fixture
def config(small_world, tiny_model) -> STARecConfig:
    return STARecConfig().data(path=small_world).model(name=str(tiny_model), dtype="float32")


def test_a_window_longer_than_the_models_is_refused_unless_its_positions_are_stretched(
    config, tiny_model, tmp_path
):
    own = json.loads((tiny_model / "config.json").read_text())
    window = own["max_position_embeddings"]
    config.model(max_model_len=window).resolve()
    with pytest.raises(
        ConfigError, match=rf"max_model_len is {window + 1}; .* has {window} tokens"
    ):
        config.model(max_model_len=window + 1).resolve()
    stretched = Path(shutil.copytree(tiny_model, tmp_path / "stretched"))
    rope = {**own["rope_parameters"], "rope_type": "linear", "factor": 4.0}
    (stretched / "config.json").write_text(json.dumps({**own, "rope_parameters": rope}))
    config.model(name=str(stretched), max_model_len=window + 1).resolve()


def test_a_cache_too_small_for_one_sequence_is_refused_with_what_it_takes(config, tiny_model):
    own = json.loads((tiny_model / "config.json").read_text())
    head_dim = own["hidden_size"] // own["num_attention_heads"]
    values = 2 * own["num_hidden_layers"] * own["num_key_value_heads"] * head_dim
    gib = 1024 * values * 4 / 2**30
    config.model(max_model_len=1024).env_runners(kv_cache_gib=gib).resolve()
    with pytest.raises(ConfigError, match=r"kv_cache_gib is .* 1024 tokens .* takes 0\.\d+ GiB"):
        config.env_runners(kv_cache_gib=gib * 0.99).resolve()
    config.env_runners(kv_cache_gib=gib * 0.5).model(dtype="bfloat16").resolve()


def test_an_engine_on_gpus_finds_out_by_itself_what_is_left_for_its_cache(config):
    config.env_runners(kv_cache_gib=1e-6, num_gpus_per_env_runner=1).resolve()

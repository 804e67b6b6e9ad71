"""Models that can't be used are refused with what is missing, and what to do; their dtype."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from starec_ray.errors import ConfigError, StorageError
from starec_ray.models.resolve import (
    check_chat_template,
    check_same_shape,
    load_tokenizer,
    resolve_dtype,
    resolve_model,
)
from starec_ray.models.tokens import prompt_ids

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A whole model's folder, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_whole_folder_is_taken_by_any_of_its_names(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert resolve_model("./model") == resolve_model(str(model)) == str(model)
    check_chat_template(str(model))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "smollm3"])
def test_what_is_neither_folder_nor_model_is_named_with_what_may_be(name):
    with pytest.raises(ConfigError, match=rf"{name}' is neither a folder.*smollm2-135m-instruct"):
        resolve_model(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json"),
        ("{", "of no use.*not a valid JSON"),
        ('{"vocab_size": 100}', "of no use.*model_type"),
        ('{"model_type": "abacus"}', "of no use.*abacus"),
        ('{"model_type": "clip"}', "type 'clip', which doesn't write text"),
    ],
)
def test_a_folder_of_something_else_is_refused(model, config, message):
    (model / "config.json").unlink()
    if config:
        (model / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=rf"(?s)model folder {model} .*{message}"):
        resolve_model(str(model))


def test_missing_weights_are_found_before_any_learner_starts(model):
    (model / WEIGHTS).rename(model / "model-1-of-2.safetensors")
    with pytest.raises(ConfigError, match=rf"lacks weights: there is no {WEIGHTS}"):
        resolve_model(str(model))
    weight_map = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=r"no model-2-of-2\.safetensors\. Copy or download"):
        resolve_model(str(model))
    (model / "model-2-of-2.safetensors").touch()
    assert resolve_model(str(model)) == str(model)


def test_a_folder_without_a_tokenizer_says_which_files_it_wants(model):
    for path in model.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"tokenizer of model .*copy tokenizer\.json"):
        check_chat_template(str(model))


def test_a_tokenizer_without_a_chat_template_is_refused(model):
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template; take an instruct model"):
        check_chat_template(str(model))


REFUSES = "{% if messages[0]['role'] == 'ROLE' %}{{ raise_exception('not supported') }}{% endif %}"
WRITES = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"


def test_a_model_without_system_messages_is_told_in_the_users_first(model):
    (model / "chat_template.jinja").write_text(REFUSES.replace("ROLE", "system") + WRITES)
    check_chat_template(str(model))
    tokenizer = load_tokenizer(str(model))
    asked = [{"role": "system", "content": "Rank."}, {"role": "user", "content": "Films"}]
    assert tokenizer.decode(prompt_ids(tokenizer, asked)) == "[Rank.\n\nFilms]"
    answered = [*asked, {"role": "assistant", "content": "no"}]
    assert tokenizer.decode(prompt_ids(tokenizer, answered)) == "[Rank.\n\nFilms][no]"


def test_a_chat_template_that_takes_no_user_message_is_refused(model):
    (model / "chat_template.jinja").write_text(REFUSES.replace("ROLE", "user") + WRITES)
    with pytest.raises(ConfigError, match=r"can't write a conversation .*\(not supported\)"):
        check_chat_template(str(model))


def test_an_index_of_weights_that_is_none_is_named(model):
    (model / WEIGHTS).unlink()
    (model / f"{WEIGHTS}.index.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"safetensors\.index\.json can't be read"):
        resolve_model(str(model))


def test_a_model_takes_the_place_of_another_of_its_shape_alone(model, tiny_model, monkeypatch):
    check_same_shape(str(model), str(tiny_model))
    config = json.loads((model / "config.json").read_text())
    config["hidden_size"] *= 2
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"{model} has another shape .*hidden_size"):
        check_same_shape(str(model), str(tiny_model))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="model runs/none can't be had"):
        check_same_shape("runs/none", str(tiny_model))


def test_a_hub_that_is_out_of_reach_is_told_without_a_stack_trace(small_world, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{path: {small_world}}}\nmodel: {{name: nobody/model-0.5B}}\n")
    program = "from starec_ray.cli import main; main()"
    command = [sys.executable, "-c", program, "train", recipe, "--run-dir", tmp_path / "run"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "500"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "nobody/model-0.5B can't be had: check the id and the connection" in done.stderr


@pytest.mark.parametrize(
    ("machine", "name", "supported", "onednn", "fast"),
    [
        ("x86_64", "AMD EPYC", {"avx512_bf16"}, True, True),
        ("x86_64", "AMD EPYC", set(), True, False),  # any AVX-512 is enough for oneDNN to say yes
        ("x86_64", "Intel Xeon", {"avx512_bf16", "amx_bf16"}, True, True),
        ("x86_64", "Intel Xeon", {"avx512_bf16"}, True, False),
        ("aarch64", "Neoverse", set(), True, True),
        ("aarch64", "Neoverse", set(), False, False),
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it_faster(
    machine, name, supported, onednn, fast, monkeypatch
):
    capabilities = torch.cpu.get_capabilities() | {"cpu_name": name}
    capabilities |= {key: key in supported for key in ("avx512_bf16", "amx_bf16")}
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert resolve_dtype("auto", on_gpu=False) == ("bfloat16" if fast else "float32")
    assert resolve_dtype("auto", on_gpu=True) == "bfloat16"
    assert resolve_dtype("float32", on_gpu=True) == "float32"


def test_a_cache_that_can_not_be_written_is_named_with_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STAREC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"file/cache can't be written: .*STAREC_CACHE"):
        resolve_model("tiny")

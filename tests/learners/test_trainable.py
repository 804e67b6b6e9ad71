"""Models that the learner can't train are refused with what they have."""

import pytest
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HrmTextConfig,
    HrmTextForCausalLM,
    LlamaConfig,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from learners.attention import attention_windows
from learners.trainable import check_trainable, check_window
from starec_ray.errors import ConfigError
from tests.learners.samples import VOCABULARY

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1}
HEADS = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def bloom() -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=4))


def gemma2(**changes) -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**HEADS, intermediate_size=64, **changes))


def gpt_oss() -> PreTrainedModel:
    return GptOssForCausalLM(GptOssConfig(**HEADS, intermediate_size=64, num_local_experts=2))


def hrm() -> PreTrainedModel:
    return HrmTextForCausalLM(HrmTextConfig(**SMALL, num_attention_heads=4))


def gemma3(**changes) -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**HEADS, intermediate_size=64, **changes))


def recurrent_gemma() -> PreTrainedModel:
    return RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(**HEADS, intermediate_size=64, lru_width=32)
    )


def granite(**changes) -> PreTrainedModel:
    small = {name: value for name, value in HEADS.items() if name != "head_dim"}
    return GraniteForCausalLM(GraniteConfig(**small, intermediate_size=64, **changes))


def cohere() -> PreTrainedModel:
    small = {name: value for name, value in HEADS.items() if name != "head_dim"}
    return CohereForCausalLM(CohereConfig(**small, intermediate_size=64))


def phi() -> PreTrainedModel:
    small = {name: value for name, value in HEADS.items() if name != "head_dim"}
    return PhiForCausalLM(PhiConfig(**small, intermediate_size=64))


def qwen3_next() -> PreTrainedModel:
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            **HEADS,
            layer_types=["linear_attention"],
            intermediate_size=64,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            linear_num_key_heads=1,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
    )


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rotary_frequencies_that_change_with_a_row_s_length_are_refused_beyond_it(rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0}
    if rope_type == "longrope":
        factors = [1.0] * 4
        rope |= {
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": 64,
        }
    longest = 256 if rope_type == "longrope" else 64
    config = LlamaConfig(**HEADS, max_position_embeddings=longest, rope_parameters=rope)
    check_window(config, 64)
    with pytest.raises(ConfigError, match=rf"max_model_len is 65.*\({rope_type}\).*64 tokens"):
        check_window(config, 65)
    check_window(LlamaConfig(**HEADS, max_position_embeddings=64), 10_000)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (bloom, "'bloom': their attention can't be replaced"),
        (gemma2, "'gemma2': their logits .*final_logit_softcapping"),
        (lambda: gemma2(final_logit_softcapping=None), "'gemma2': their attention has capped"),
        (gpt_oss, "'gpt_oss': their attention has sinks"),
        (hrm, "'hrm_text': transformers splits their published weights"),
        (recurrent_gemma, "'recurrent_gemma': not all of their layers are causal attention"),
        (lambda: gemma3(use_bidirectional_attention=True), "'gemma3_text': not all of their"),
        (lambda: granite(logits_scaling=8.0), "'granite': their logits .*logits_scaling"),
        (cohere, "'cohere': their logits .*logit_scale"),
        (phi, "'phi': their logits .*a bias of the output layer"),
        (qwen3_next, "'qwen3_next' have 'linear_attention' layers"),
    ],
    ids=[
        "position bias",
        "capped logits",
        "capped attention",
        "sinks",
        "split weights",
        "recurrence",
        "both directions",
        "scaled logits",
        "scaled logits of another name",
        "bias",
        "linear attention",
    ],
)
def test_what_the_learner_does_not_know_is_refused(model, why):
    with pytest.raises(ConfigError, match=why):
        check_trainable(model())


@pytest.mark.parametrize(
    ("layers", "windows"),
    [
        ({}, {"full_attention": None}),
        ({"sliding_window": 8}, {"sliding_attention": 8}),
        ({"sliding_window": 8, "layer_types": ["full_attention"] * 2}, {"full_attention": None}),
        (
            {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            {"full_attention": None, "sliding_attention": 8},
        ),
    ],
    ids=["full", "sliding", "a window that no layer has", "both"],
)
def test_each_kind_of_layers_has_its_window(layers, windows):
    assert attention_windows(PreTrainedConfig(**layers)) == windows


@pytest.mark.parametrize("kind", ["linear_attention", "chunked_attention"])
def test_layers_of_a_kind_without_a_mask_are_refused_beside_others_too(kind):
    config = PreTrainedConfig(layer_types=["full_attention", kind, "sliding_attention"])
    with pytest.raises(ConfigError, match=f"'{kind}' layers"):
        attention_windows(config)


def test_split_weights_are_refused_in_a_model_that_was_read_too(tmp_path):
    hrm().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'hrm_text'"):
        check_trainable(AutoModelForCausalLM.from_pretrained(tmp_path))

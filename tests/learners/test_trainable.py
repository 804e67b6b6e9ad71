"""Models that the learner can't train are refused with what they have."""

import pytest
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    HrmTextConfig,
    HrmTextForCausalLM,
    PreTrainedModel,
)

from learners.trainable import check_trainable
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


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (bloom, "'bloom': their attention can't be replaced"),
        (gemma2, "'gemma2': their logits .*final_logit_softcapping"),
        (lambda: gemma2(final_logit_softcapping=None), "'gemma2': their attention has capped"),
        (gpt_oss, "'gpt_oss': their attention has sinks"),
        (hrm, "'hrm_text': transformers splits their published weights"),
    ],
    ids=["position bias", "capped logits", "capped attention", "sinks", "split weights"],
)
def test_what_the_learner_does_not_know_is_refused(model, why):
    with pytest.raises(ConfigError, match=why):
        check_trainable(model())


def test_split_weights_are_refused_in_a_model_that_was_read_too(tmp_path):
    hrm().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'hrm_text'"):
        check_trainable(AutoModelForCausalLM.from_pretrained(tmp_path))

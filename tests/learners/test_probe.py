"""A model whose packed scores aren't those of each reply alone is found before it learns."""

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
)
from transformers.models.llama.configuration_llama import LlamaConfig

from learners.batching import MicroBatch
from learners.logprobs import ReplyScorer
from learners.probe import check_packed_scores
from learners.weights import load_language_model
from starec_ray.errors import ConfigError
from tests.learners.samples import VOCABULARY, LearnerConfig
from tests.learners.test_logprobs import SMALL

NOISY = {
    "residual dropout": lambda: SeedOssForCausalLM(
        SeedOssConfig(**SMALL, head_dim=8, residual_dropout=0.3, attention_dropout=0.3)
    ),
    "dropout by function": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            init_std=0.2,
            dropout=0.3,
        )
    ),
    "router jitter": lambda: MixtralForCausalLM(
        MixtralConfig(**SMALL, num_local_experts=4, router_jitter_noise=0.5)
    ),
}


def check(model) -> None:
    """As a learner does, in training mode."""
    scorer = ReplyScorer(model)
    model.train()

    def score(m: MicroBatch) -> torch.Tensor:
        tensors = {
            name: torch.from_numpy(getattr(m, name)) for name in m.__slots__ if name != "spans"
        }
        return scorer(
            tensors["token_ids"],
            tensors["positions"],
            m.spans,
            tensors["predictors"],
            tensors["targets"],
            torch.ones(len(m.targets)),
            tensors["choice_ids"],
            tensors["choice_mask"],
        )[0]

    check_packed_scores(score, VOCABULARY, torch.float32, model.config.model_type)


def test_a_model_that_hands_the_arguments_of_attention_on_is_taken():
    torch.manual_seed(0)
    check(LlamaForCausalLM(LlamaConfig(**SMALL)))


def test_one_that_does_not_is_refused():
    torch.manual_seed(0)
    small = {name: value for name, value in SMALL.items() if name != "attn_implementation"}
    with pytest.raises(ConfigError, match=r"'nemotron': .* by [\d.]+ nats a token"):
        check(NemotronForCausalLM(NemotronConfig(**small)))


@pytest.mark.parametrize("kind", NOISY)
def test_what_draws_random_numbers_as_it_learns_is_refused_and_loaded_without(kind, tmp_path):
    torch.manual_seed(0)
    model = NOISY[kind]()
    with pytest.raises(ConfigError, match="draw random numbers"):
        check(model)
    model.save_pretrained(tmp_path)
    check(load_language_model(LearnerConfig(tmp_path), {}))

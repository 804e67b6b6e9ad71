"""A random language model with a mixture of experts, for learners and for vLLM."""

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


def tiny_experts(vocabulary: int, eos_token_id: int) -> Qwen3MoeForCausalLM:
    """Two layers of four experts, in float32; vLLM's CPU attention wants heads of 32."""
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            initializer_range=0.1,
            max_position_embeddings=2048,
            eos_token_id=eos_token_id,
            dtype="float32",
        )
    )

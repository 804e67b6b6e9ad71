"""A tiny language model and a batch with everything in it."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from learners.batching import plan
from learners.families import LEAST_OPENING
from tests.learners.samples import MICRO_BATCH_TOKENS, VOCABULARY, make_sequences

# A second thread has nothing to do in models this small.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama (float32, 2 layers, tied embeddings) and a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=2,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"<{i}>": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<2>").save_pretrained(folder)
    return folder


@pytest.fixture
def mixed_sequences() -> pa.Table:
    """All three components; groups of different sizes, one of them too wide for the budget, two
    that share a micro-batch and the opening of their prompts."""
    table = make_sequences(
        [
            ("rank", 20, [5, 9, 1, 7]),
            ("rank", 33, [6, 6, 2]),
            ("reflect", 12, [15, 16, 14]),
            ("anchor", 25, [9]),
            ("anchor", 8, [12]),
            ("rank", 40, [20, 20, 20, 20]),
        ],
        trace_weight=0.7,
        alike=LEAST_OPENING + 2,
    )
    micro_batches = plan(table, micro_batch_tokens=MICRO_BATCH_TOKENS).micro_batches
    assert any(family.opening for batch in micro_batches for family in batch.spans)
    return table

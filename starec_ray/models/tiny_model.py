"""A tiny language model with a real tokenizer, made on the spot: seconds instead of minutes."""

from collections.abc import Iterable
from pathlib import Path

from starec_ray.agent import prompts
from starec_ray.agent.formats import FORMATS
from starec_ray.data.sources.synthetic import read_films

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What every prompt says, for the tokenizer to learn its words.
PROMPT_TEXTS = (
    prompts.RANK_SYSTEM,
    prompts.REFLECT_SYSTEM,
    *(reply_format.instruction for reply_format in FORMATS.values()),
    "User: age 30 Summary: Likes. Latest, + liked, - not: Candidates: You predicted:",
)
TIMES = 20  # words that a prompt repeats weigh more than those of single titles


def write_tiny_model(folder: Path) -> None:
    """The tiny model for the embedded films: some 600,000 parameters."""
    films = [
        f" {film['title']} ({film['year']}) {' '.join([*film['tags'], *film['people']])}"
        for film in read_films().to_pylist()
    ]
    build_tiny_model(folder, [*PROMPT_TEXTS * TIMES, *films], vocabulary=2000)


def build_tiny_model(
    folder: Path, texts: Iterable[str], *, vocabulary: int = 600, seed: int = 0
) -> Path:
    """A random 2-layer Llama and a byte-level BPE tokenizer of `texts`, saved for transformers
    and vLLM (whose CPU attention wants heads of 32 or more)."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[1], pad_token=special[1]
    )
    fast.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder

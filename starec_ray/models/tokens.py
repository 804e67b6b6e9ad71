"""Chat messages → token ids, the same for env runners and for the anchor's traces."""

from typing import Any

from starec_ray.agent.prompts import Messages


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of a prompt, int, up to where the model's reply begins."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def count_tokens(tokenizer: Any, messages: Messages) -> int:
    """How many tokens the prompt takes."""
    return len(prompt_ids(tokenizer, messages))

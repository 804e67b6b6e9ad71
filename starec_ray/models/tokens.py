"""Chat messages → token ids, the same for env runners and for the anchor's traces."""

import functools
from typing import Any

from jinja2 import TemplateError

from starec_ray.agent.prompts import Messages


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of a prompt, int, up to where the model's reply begins.

    For a model without system messages that text begins the first of the user's.
    """
    if not takes_system_messages(tokenizer):
        system, first, *more = messages
        messages = [first | {"content": f"{system['content']}\n\n{first['content']}"}, *more]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


@functools.cache
def takes_system_messages(tokenizer: Any) -> bool:
    """Whether its chat template does; some refuse them.

    Raises:
        TemplateError: it can't write a user's message either.
    """
    system, user = {"role": "system", "content": "a"}, {"role": "user", "content": "b"}
    tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    try:
        tokenizer.apply_chat_template([system, user], add_generation_prompt=True, tokenize=False)
    except TemplateError:
        return False
    return True


def count_tokens(tokenizer: Any, messages: Messages) -> int:
    """How many tokens the prompt takes."""
    return len(prompt_ids(tokenizer, messages))

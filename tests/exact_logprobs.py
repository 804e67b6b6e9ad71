"""Log-probs of replies by transformers, one sequence at a time: what all parts must meet."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


def reply_logprobs(
    model: torch.nn.Module,
    prompt: Sequence[int],
    reply: Sequence[int],
    temperature: float = 1.0,
    choices: Sequence[Sequence[int]] = (),
) -> Tensor:
    """(R,): of each reply token, among its choices where there are some."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
    for place, allowed in enumerate(choices):
        kept = logits[place, allowed]
        logits[place] = -torch.inf
        logits[place, allowed] = kept
    return torch.log_softmax(logits / temperature, -1)[range(len(reply)), reply]


def largest_gap(folder: Path, rollouts: pa.Table, temperature: float = 1.0) -> float:
    """Between the log-probs of rollouts (`schemas.ROLLOUTS`) and those of a saved model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    gap = 0.0
    for row in rollouts.to_pylist():
        expected = reply_logprobs(
            model, row["prompt_ids"], row["reply_ids"], temperature, row["choices"] or ()
        )
        gap = max(gap, (expected - torch.tensor(row["logprobs"])).abs().max().item())
    return gap

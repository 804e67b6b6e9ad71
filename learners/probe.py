"""A model tried out before it learns: are replies that share a row scored as those alone are?

What a model's code does with the arguments of attention, with dropout, or with its neighbours in a
row can't be told from its configuration.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from learners.batching import MicroBatch, collate
from learners.families import families
from learners.groups import COMPONENTS, Group, Reply
from starec_ray.errors import ConfigError

SHAPE = ((28, (7, 5)), (20, (9, 6)))  # tokens of a prompt and of its replies, for each group
# Nats a token, in the mean: by far more than rounding makes of it, by far less than seeing a
# token too many or too few does.
MOST_DIFFERENT = {torch.float32: 0.01, torch.bfloat16: 0.2}


def check_packed_scores(
    score: Callable[[MicroBatch], Tensor], vocabulary: int, dtype: torch.dtype, kind: str
) -> None:
    """
    Args:
        score: gives the log-probs (N,) of a micro-batch's targets, as an update does.
        vocabulary: tokens that the model knows.
        dtype: of its weights.
        kind: its model type, for the message.

    Raises:
        ConfigError: packed scores aren't those of each reply alone, or scored again.
    """
    groups = _random_groups(vocabulary)
    alone = [
        Group(group.component, group.prompt_ids, (reply,))
        for group in groups
        for reply in group.replies
    ]
    together = _in_order(collate(families(groups)), score)
    apart = torch.cat([_in_order(collate(families([group])), score) for group in alone])
    difference = float((together - apart).abs().mean())
    if not difference <= MOST_DIFFERENT[dtype]:
        raise ConfigError(
            f"The learner can't train this model of type {kind!r}: it scores replies that share a "
            f"row otherwise than each alone, by {difference:.2g} nats a token. Its code may not "
            "hand the arguments of attention on, or draw random numbers (dropout, jitter); choose "
            "another model."
        )


def _random_groups(vocabulary: int) -> list[Group]:
    rng = np.random.default_rng(0)
    groups, places = [], 0
    for prompt, lengths in SHAPE:
        replies = []
        for length in lengths:
            # Told apart by the advantages, for families may be put in another order.
            places += length
            order = np.arange(places - length, places, dtype=np.float32)
            tokens = rng.integers(vocabulary, size=length).astype(np.int32)
            replies.append(Reply(tokens, np.zeros(length, np.float32), order, None))
        tokens = rng.integers(vocabulary, size=prompt).astype(np.int32)
        groups.append(Group(COMPONENTS.index("rank"), tokens, tuple(replies)))
    return groups


def _in_order(micro_batch: MicroBatch, score: Callable[[MicroBatch], Tensor]) -> Tensor:
    order = torch.from_numpy(np.argsort(micro_batch.advantages))
    return score(micro_batch).detach().float().cpu()[order]

"""SEQUENCES table → groups: a prompt and the replies that it got."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from starec_ray.errors import DataError
from starec_ray.schemas import SEQUENCES

COMPONENTS = ("anchor", "rank", "reflect")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: token ids, sampled log-probs and advantages, (R,) each.

    `choices` holds for each token the tokens that could stand there (None: the vocabulary).
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    advantages: NDArray[np.float32]
    choices: tuple[tuple[int, ...], ...] | None

    @property
    def learned(self) -> NDArray[np.int64]:
        """Indices of the tokens that were chosen among others."""
        if self.choices is None:
            return np.arange(len(self.token_ids))
        return np.array([i for i, c in enumerate(self.choices) if len(c) > 1], np.int64)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt (P,) and its replies, or some of them where all are too wide for a micro-batch."""

    component: int  # index into COMPONENTS
    prompt_ids: NDArray[np.int32]
    replies: tuple[Reply, ...]

    @property
    def width(self) -> int:
        """Input tokens of this group alone, all of its prompt among them."""
        return len(self.prompt_ids) + sum(len(reply.token_ids) - 1 for reply in self.replies)


def read_groups(sequences: pa.Table) -> list[Group]:
    """The groups of a SEQUENCES table, in the order of their first sequence.

    Raises DataError for sequences that can't be trained on.
    """
    if not sequences.num_rows:
        raise DataError("There is nothing to learn from: the table of sequences has no rows.")
    missing = [name for name in SEQUENCES.names if name not in sequences.column_names]
    if missing:
        raise DataError(f"The table of sequences lacks the columns {', '.join(missing)}.")
    unknown = set(pc.unique(sequences["component"]).to_pylist()) - set(COMPONENTS)
    if unknown:
        raise DataError(f"Unknown component {unknown.pop()!r}: use {', '.join(COMPONENTS)}.")

    components = sequences["component"].to_pylist()
    numbers = sequences["group"].to_pylist()
    advantages = _lists(sequences["advantages"])
    prompts, replies = _lists(sequences["prompt_ids"]), _lists(sequences["reply_ids"])
    sampled = _lists(sequences["logprobs"])
    choices = sequences["choices"].to_pylist()
    members: dict[tuple[str, int], list[int]] = {}
    for i, key in enumerate(zip(components, numbers, strict=True)):
        members.setdefault(key, []).append(i)

    groups = []
    for (component, number), indices in members.items():
        prompt = prompts[indices[0]]
        own = []
        for i in indices:
            where = f"Sequence {i} ({component}, group {number})"
            if not len(replies[i]) or not len(prompts[i]):
                raise DataError(f"{where} has an empty prompt or reply.")
            if not np.array_equal(prompt, prompts[i]):
                raise DataError(
                    f"{where} has another prompt than sequence {indices[0]}: a group shares one "
                    "prompt, token for token."
                )
            logprobs = sampled[i]
            if component == "anchor":
                logprobs = np.zeros(len(replies[i]), np.float32)
            if len(advantages[i]) != len(replies[i]):
                raise DataError(
                    f"{where} has {len(replies[i])} reply tokens and {len(advantages[i])} "
                    "advantages: each token needs one."
                )
            if len(logprobs) != len(replies[i]):
                raise DataError(
                    f"{where} has {len(replies[i])} reply tokens and {len(logprobs)} sampled "
                    "log-probs: the importance ratio needs one for each."
                )
            own.append(
                Reply(replies[i], logprobs, advantages[i], _checked(choices[i], replies[i], where))
            )
        groups.append(Group(COMPONENTS.index(component), prompt, tuple(own)))
    return groups


def split(group: Group, micro_batch_tokens: int) -> list[Group]:
    """The group as few parts within the budget, each with the prompt."""
    parts: list[list[Reply]] = [[]]
    width = len(group.prompt_ids)
    for reply in group.replies:
        cost = len(reply.token_ids) - 1
        if parts[-1] and width + cost > micro_batch_tokens:
            parts.append([])
            width = len(group.prompt_ids)
        parts[-1].append(reply)
        width += cost
    return [Group(group.component, group.prompt_ids, tuple(part)) for part in parts]


def _checked(
    choices: list[list[int]] | None, reply_ids: NDArray[np.int32], where: str
) -> tuple[tuple[int, ...], ...] | None:
    if choices is None:
        return None
    if len(choices) != len(reply_ids) or any(
        token not in each for token, each in zip(reply_ids.tolist(), choices, strict=True)
    ):
        raise DataError(f"{where} has a token that isn't among its choices.")
    return tuple(map(tuple, choices))


def _lists(column: pa.ChunkedArray) -> list[NDArray]:
    """A list column as one array for each row, empty for a null."""
    arrays = []
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        lengths = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        arrays += [
            values[start : start + length]
            for start, length in zip(offsets[:-1], lengths, strict=True)
        ]
    return arrays

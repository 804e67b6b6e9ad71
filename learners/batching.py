"""SEQUENCES table → micro-batches with a shared prefix, balanced over the learners.

A row of a micro-batch is one group: its prompt once, then its replies behind it. Each reply
attends to the prompt and to itself, and its positions go on from the prompt's end, so a group of
G replies costs one prompt instead of G. Rows of similar width lie side by side in one micro-batch
(padded to the widest) instead of one after the other in one row: attention then costs the sum of
the squared widths, not the square of their sum.

A reply's last token is predicted but predicts nothing, so it is no input: a row of a prompt with
P tokens and replies with R1, R2, … tokens is P + (R1 - 1) + (R2 - 1) + … wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from starec_ray.errors import DataError
from starec_ray.schemas import SEQUENCES

COMPONENTS = ("anchor", "rank", "reflect")
PROMPT, PADDING = 0, -1  # values of MicroBatch.segments; replies count from 1


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
class Row:
    """A group, or a part of one too wide for a micro-batch: a prompt (P,) and its replies."""

    component: int  # index into COMPONENTS
    prompt_ids: NDArray[np.int32]
    replies: tuple[Reply, ...]

    @property
    def width(self) -> int:
        """Input tokens of this row."""
        return len(self.prompt_ids) + sum(len(reply.token_ids) - 1 for reply in self.replies)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward and backward pass sees: B rows, W wide, that predict N reply tokens.

    Tokens that constrained decoding left no choice for aren't among the N.

    An empty micro-batch (B = W = 1, N = 0) keeps a learner in step with the others.
    """

    token_ids: NDArray[np.int64]  # (B, W)
    positions: NDArray[np.int64]  # (B, W)
    segments: NDArray[np.int64]  # (B, W): PROMPT, 1 … for the replies, PADDING
    predictors: NDArray[np.int64]  # (N,): index into B·W of the input that predicts the target
    targets: NDArray[np.int64]  # (N,)
    components: NDArray[np.int64]  # (N,): index into COMPONENTS
    advantages: NDArray[np.float32]  # (N,)
    logprobs: NDArray[np.float32]  # (N,): sampled; 0 for the anchor's traces
    choice_ids: NDArray[np.int64]  # (U,): every token that constrained targets choose from
    # (N, U) bool: what each target was chosen from; no True: from the whole vocabulary.
    choice_mask: NDArray[np.bool_]

    @property
    def one_reply_each(self) -> bool:
        """Whether plain causal attention is exact, so that no mask is needed."""
        return bool(self.segments.max() <= 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """One learner's share of a batch, and the counts over all learners."""

    micro_batches: tuple[MicroBatch, ...]
    component_tokens: dict[str, int]  # reply tokens to learn from, over all learners
    tokens: int  # input tokens without padding, over all learners


def plan(
    sequences: pa.Table, *, micro_batch_tokens: int, rank: int = 0, world_size: int = 1
) -> Plan:
    """This rank's micro-batches of `sequences` (SEQUENCES schema): every rank gets as many.

    A micro-batch has at most `micro_batch_tokens` input tokens, padding included, unless a
    prompt with one reply is wider alone. Pure: all ranks compute the same shares from the same
    table. Raises DataError for rows that can't be trained on.
    """
    rows = [part for row in read_rows(sequences) for part in split(row, micro_batch_tokens)]
    shares = [batch_rows(share, micro_batch_tokens) for share in share_out(rows, world_size)]
    longest = max(len(share) for share in shares)
    own = [collate(batch) for batch in shares[rank]]
    component_tokens = dict.fromkeys(COMPONENTS, 0)
    for row in rows:
        component_tokens[COMPONENTS[row.component]] += sum(len(r.learned) for r in row.replies)
    return Plan(
        micro_batches=(*own, *(empty_micro_batch() for _ in range(longest - len(own)))),
        component_tokens=component_tokens,
        tokens=sum(row.width for row in rows),
    )


def read_rows(sequences: pa.Table) -> list[Row]:
    """The groups of a SEQUENCES table as rows, in the order of their first sequence."""
    if not sequences.num_rows:
        raise DataError("There is nothing to learn from: the table of sequences has no rows.")
    missing = [name for name in SEQUENCES.names if name not in sequences.column_names]
    if missing:
        raise DataError(f"The table of sequences lacks the columns {', '.join(missing)}.")
    unknown = set(pc.unique(sequences["component"]).to_pylist()) - set(COMPONENTS)
    if unknown:
        raise DataError(f"Unknown component {unknown.pop()!r}: use {', '.join(COMPONENTS)}.")

    components = sequences["component"].to_pylist()
    groups = sequences["group"].to_pylist()
    advantages = _lists(sequences["advantages"])
    prompts, replies = _lists(sequences["prompt_ids"]), _lists(sequences["reply_ids"])
    sampled = _lists(sequences["logprobs"])
    choices = sequences["choices"].to_pylist()
    members: dict[tuple[str, int], list[int]] = {}
    for i, key in enumerate(zip(components, groups, strict=True)):
        members.setdefault(key, []).append(i)

    rows = []
    for (component, group), indices in members.items():
        prompt = prompts[indices[0]]
        group_replies = []
        for i in indices:
            where = f"Sequence {i} ({component}, group {group})"
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
            group_replies.append(
                Reply(replies[i], logprobs, advantages[i], _checked(choices[i], replies[i], where))
            )
        rows.append(Row(COMPONENTS.index(component), prompt, tuple(group_replies)))
    return rows


def split(row: Row, micro_batch_tokens: int) -> list[Row]:
    """The row as few rows within the budget, each with its own copy of the prompt."""
    parts: list[list[Reply]] = [[]]
    width = len(row.prompt_ids)
    for reply in row.replies:
        cost = len(reply.token_ids) - 1
        if parts[-1] and width + cost > micro_batch_tokens:
            parts.append([])
            width = len(row.prompt_ids)
        parts[-1].append(reply)
        width += cost
    return [Row(row.component, row.prompt_ids, tuple(part)) for part in parts]


def share_out(rows: Sequence[Row], world_size: int) -> list[list[Row]]:
    """Rows for each learner, by longest processing time first: loads differ by one row at most.

    Graham, Bounds on Multiprocessing Timing Anomalies (1969).
    """
    shares: list[list[Row]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for row in sorted(rows, key=lambda row: -row.width):
        lightest = loads.index(min(loads))
        shares[lightest].append(row)
        loads[lightest] += row.width
    return shares


def batch_rows(rows: Sequence[Row], micro_batch_tokens: int) -> list[list[Row]]:
    """Rows side by side in micro-batches, widest first, so that little is padding."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -row.width):
        if batches and (len(batches[-1]) + 1) * batches[-1][0].width <= micro_batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(rows: Sequence[Row]) -> MicroBatch:
    """One micro-batch of these rows."""
    width = max(row.width for row in rows)
    token_ids = np.zeros((len(rows), width), np.int64)
    positions = np.tile(np.arange(width), (len(rows), 1))
    segments = np.full((len(rows), width), PADDING, np.int64)
    predictors, targets, components, advantages, logprobs = [], [], [], [], []
    choices: list[tuple[int, ...]] = []
    for b, row in enumerate(rows):
        prompt_end = at = len(row.prompt_ids)
        token_ids[b, :at], segments[b, :at] = row.prompt_ids, PROMPT
        for number, reply in enumerate(row.replies, start=1):
            inputs = reply.token_ids[:-1]
            span = slice(at, at + len(inputs))
            token_ids[b, span], segments[b, span] = inputs, number
            positions[b, span] = prompt_end + np.arange(len(inputs))
            before = np.concatenate([[prompt_end - 1], np.arange(span.start, span.stop)])
            learned = reply.learned
            predictors.append(b * width + before[learned])
            targets.append(reply.token_ids[learned])
            components.append(np.full(len(learned), row.component))
            advantages.append(reply.advantages[learned])
            logprobs.append(reply.logprobs[learned])
            choices += [reply.choices[i] if reply.choices else () for i in learned]
            at = span.stop
    choice_ids = np.array(sorted({token for each in choices for token in each}), np.int64)
    choice_mask = np.zeros((len(choices), len(choice_ids)), np.bool_)
    for n, each in enumerate(choices):
        choice_mask[n, np.searchsorted(choice_ids, each)] = True
    return MicroBatch(
        token_ids=token_ids,
        positions=positions,
        segments=segments,
        predictors=np.concatenate(predictors).astype(np.int64),
        targets=np.concatenate(targets).astype(np.int64),
        components=np.concatenate(components).astype(np.int64),
        advantages=np.concatenate(advantages).astype(np.float32),
        logprobs=np.concatenate(logprobs).astype(np.float32),
        choice_ids=choice_ids,
        choice_mask=choice_mask,
    )


def empty_micro_batch() -> MicroBatch:
    """A forward and backward pass that adds nothing to the gradient."""
    one, none = np.zeros((1, 1), np.int64), np.zeros(0, np.int64)
    no_floats = np.zeros(0, np.float32)
    no_mask = np.zeros((0, 0), np.bool_)
    return MicroBatch(one, one, one, none, none, none, no_floats, no_floats, none, no_mask)


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

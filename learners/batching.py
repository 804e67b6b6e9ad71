"""Groups → micro-batches with shared prefixes, balanced over the learners.

A micro-batch is one row of tokens, group after group, without padding: a group's prompt once, then
its replies behind it. Each reply attends to the prompt and to itself (`learners.attention`), and
its positions go on from the prompt's end, so a group of G replies costs one prompt instead of G.
What the prompts of several groups begin with, as the words of the task, lies once before these
groups, a family (`learners.families`).

A reply's last token is predicted but predicts nothing, so it is no input: a group of a prompt with
P tokens and replies with R1, R2, … tokens is P + (R1 - 1) + (R2 - 1) + … wide. By these widths
groups are shared out and put together; what families then save isn't filled up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learners.families import Family, families
from learners.groups import COMPONENTS, Group, read_groups, split
from learners.spans import FamilySpan, GroupSpan


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward and backward pass sees: W input tokens that predict N reply tokens.

    Tokens that constrained decoding left no choice for aren't among the N. An empty micro-batch
    (W = 1, N = 0) keeps a learner in step with the others.
    """

    token_ids: NDArray[np.int64]  # (W,)
    positions: NDArray[np.int64]  # (W,)
    spans: tuple[FamilySpan, ...]
    predictors: NDArray[np.int64]  # (N,): index of the input that predicts the target
    targets: NDArray[np.int64]  # (N,)
    components: NDArray[np.int64]  # (N,): index into COMPONENTS
    advantages: NDArray[np.float32]  # (N,)
    logprobs: NDArray[np.float32]  # (N,): sampled; 0 for the anchor's traces
    choice_ids: NDArray[np.int64]  # (U,): every token that constrained targets choose from
    # (N, U) bool: what each target was chosen from; no True: from the whole vocabulary.
    choice_mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Plan:
    """One learner's share of a batch, and the counts over all learners."""

    micro_batches: tuple[MicroBatch, ...]
    component_tokens: dict[str, int]  # reply tokens to learn from, over all learners
    tokens: int  # a prompt once in each micro-batch, and the replies; over all learners


def plan(
    sequences: pa.Table, *, micro_batch_tokens: int, rank: int = 0, world_size: int = 1
) -> Plan:
    """This rank's micro-batches of `sequences` (SEQUENCES schema): every rank gets as many.

    A micro-batch has at most `micro_batch_tokens` input tokens before its families save some,
    unless a prompt with one reply is wider alone. Pure: all ranks compute the same shares from the
    same table. Raises DataError for rows that can't be trained on.
    """
    groups = [part for group in read_groups(sequences) for part in split(group, micro_batch_tokens)]
    shares = [batch_groups(share, micro_batch_tokens) for share in share_out(groups, world_size)]
    longest = max(len(share) for share in shares)
    own = [collate(families(batch)) for batch in shares[rank]]
    component_tokens = dict.fromkeys(COMPONENTS, 0)
    for group in groups:
        component_tokens[COMPONENTS[group.component]] += sum(len(r.learned) for r in group.replies)
    return Plan(
        micro_batches=(*own, *(empty_micro_batch() for _ in range(longest - len(own)))),
        component_tokens=component_tokens,
        tokens=sum(group.width for group in groups),
    )


def share_out(groups: Sequence[Group], world_size: int) -> list[list[Group]]:
    """Groups for each learner, by longest processing time first: loads differ by one group's
    width at most.

    Graham, Bounds on Multiprocessing Timing Anomalies (1969).
    """
    shares: list[list[Group]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for group in sorted(groups, key=lambda group: -group.width):
        lightest = loads.index(min(loads))
        shares[lightest].append(group)
        loads[lightest] += group.width
    return shares


def batch_groups(groups: Sequence[Group], micro_batch_tokens: int) -> list[list[Group]]:
    """Groups that share a micro-batch: the widest first, each into the first that has room.

    First-fit decreasing takes at most 11/9 of the fewest micro-batches, and four (Johnson 1973).
    """
    batches: list[list[Group]] = []
    room: list[int] = []
    for group in sorted(groups, key=lambda group: -group.width):
        fitting = (i for i, left in enumerate(room) if left >= group.width)
        place = next(fitting, len(batches))
        if place == len(batches):
            batches.append([])
            room.append(micro_batch_tokens)
        batches[place].append(group)
        room[place] -= group.width
    return batches


def collate(batch: Sequence[Family]) -> MicroBatch:
    """One micro-batch of these families."""
    token_ids, positions, spans = [], [], []
    predictors, targets, components, advantages, logprobs = [], [], [], [], []
    choices: list[tuple[int, ...]] = []
    at = 0
    for family in batch:
        opening = family.opening
        start, groups = at, []
        token_ids.append(family.groups[0].prompt_ids[:opening])
        positions.append(np.arange(opening))
        at += opening
        for group in family.groups:
            prompt = len(group.prompt_ids)
            inputs = [reply.token_ids[:-1] for reply in group.replies]
            lengths = tuple(len(each) for each in inputs if len(each))
            span = GroupSpan(at, prompt - opening, lengths)
            groups.append(span)
            token_ids += [group.prompt_ids[opening:], *inputs]
            positions += [np.arange(opening, prompt)]
            positions += [prompt + np.arange(len(each)) for each in inputs]
            at = span.prompt_end
            for reply, each in zip(group.replies, inputs, strict=True):
                before = np.concatenate([[span.prompt_end - 1], at + np.arange(len(each))])
                learned = reply.learned
                predictors.append(before[learned])
                targets.append(reply.token_ids[learned])
                components.append(np.full(len(learned), group.component))
                advantages.append(reply.advantages[learned])
                logprobs.append(reply.logprobs[learned])
                choices += [reply.choices[i] if reply.choices else () for i in learned]
                at += len(each)
        spans.append(FamilySpan(start, opening, tuple(groups)))
    choice_ids = np.array(sorted({token for each in choices for token in each}), np.int64)
    choice_mask = np.zeros((len(choices), len(choice_ids)), np.bool_)
    for n, allowed in enumerate(choices):
        choice_mask[n, np.searchsorted(choice_ids, allowed)] = True
    return MicroBatch(
        token_ids=np.concatenate(token_ids).astype(np.int64),
        positions=np.concatenate(positions).astype(np.int64),
        spans=tuple(spans),
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
    none, no_floats = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return MicroBatch(
        token_ids=np.zeros(1, np.int64),
        positions=np.zeros(1, np.int64),
        spans=(FamilySpan(0, 0, (GroupSpan(0, 1, ()),)),),
        predictors=none,
        targets=none,
        components=none,
        advantages=no_floats,
        logprobs=no_floats,
        choice_ids=none,
        choice_mask=np.zeros((0, 0), np.bool_),
    )

"""Attention of packed groups on a CPU, without a mask and what it would blank out.

A micro-batch's row is cut into stretches: openings, prompts and replies. Each attends causally to
itself, stretches of about one length side by side; then, to what lies before them, the tokens of a
family to its opening, and a group's replies to its prompt. These parts are joined by their
log-sum-exps, and the backward pass of each takes the joined output and log-sum-exp, as in ring
attention (arXiv 2310.01889): exact, by kernels that know causal and full attention alone. For a
group of P prompt and G·R reply tokens that is P²/2 + P·G·R + G·R²/2 products, less those that an
opening saves, where a mask over a micro-batch of W tokens costs W².
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.autograd import Function

from learners.attention_kernels import attend, for_each_query_head, gradients, products_pay
from learners.spans import FamilySpan

# For the log-sum-exp of filled-up places: e^(score - this) is 0, and no infinity takes part.
NOTHING = 1e4
# Stretches stand side by side that are filled up by no more than this part of the longest, or by no
# more than these tokens.
MOST_FILLED, LEAST_FILLED = 0.1, 8


class Stretches:
    """Stretches side by side, (N, longest), the shorter filled up with their first token."""

    def __init__(self, stretches: Sequence[slice]) -> None:
        lengths = [_length(stretch) for stretch in stretches]
        self.longest = max(lengths)
        self.even = min(lengths) == self.longest
        first, count = stretches[0].start, len(lengths) * self.longest
        starts_N1 = torch.tensor([[stretch.start] for stretch in stretches])
        within_L = torch.arange(self.longest)
        self.filled_NL = within_L >= torch.tensor(lengths)[:, None]
        self.places = (starts_N1 + within_L.masked_fill(self.filled_NL, 0)).flatten()
        self.kept = (~self.filled_NL).flatten().nonzero()[:, 0]
        # One after the other: they are taken without a copy.
        in_line = self.even and torch.equal(self.places, torch.arange(first, first + count))
        self.line = slice(first, first + count) if in_line else None

    def take(self, tensor_W: Tensor) -> Tensor:
        """(W, …) → (N, longest, …)."""
        taken = tensor_W.index_select(0, self.places) if self.line is None else tensor_W[self.line]
        return taken.unflatten(0, (-1, self.longest))

    def put(self, tensor_W: Tensor, values_NL: Tensor) -> None:
        """(N, longest, …) → their places in (W, …)."""
        values = values_NL.flatten(0, 1)
        if self.line is not None:
            tensor_W[self.line] = values
        elif self.even:
            tensor_W.index_copy_(0, self.places, values)
        else:
            tensor_W.index_copy_(0, self.places[self.kept], values[self.kept])

    def blank(self, taken_NL: Tensor, value: float) -> None:
        """Sets the filled-up places of what `take` gave."""
        if not self.even:
            taken_NL[self.filled_NL] = value


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """A micro-batch as attention sees it."""

    stretches: tuple[Stretches, ...]  # all tokens, each once
    behind: tuple[tuple[slice, slice], ...]  # queries, and keys that all of them see


def packed_layout(families: Sequence[FamilySpan]) -> PackedLayout:
    """What attends to what: made once for a micro-batch, for all layers."""
    stretches: list[slice] = []
    behind = []
    for family in families:
        opening = slice(family.start, family.opening_end)
        if family.opening:
            stretches.append(opening)
            behind.append((slice(opening.stop, family.groups[-1].end), opening))
        for group in family.groups:
            prompt = slice(group.start, group.prompt_end)
            bounds = accumulate(group.replies, initial=prompt.stop)
            stretches += [prompt, *(slice(*of_reply) for of_reply in pairwise(bounds))]
            if group.replies:
                behind.append((slice(prompt.stop, group.end), prompt))
    return PackedLayout(tuple(map(Stretches, _side_by_side(stretches))), tuple(behind))


def _side_by_side(stretches: Sequence[slice]) -> list[list[slice]]:
    """All of them, each among those that it needs little filling up for."""
    together: list[list[slice]] = []
    least = 0.0
    for stretch in sorted(stretches, key=_length, reverse=True):
        length = _length(stretch)
        if not together or length < least:
            together.append([])
            least = min(length - LEAST_FILLED, length * (1 - MOST_FILLED))
        together[-1].append(stretch)
    return [sorted(each, key=lambda stretch: stretch.start) for each in together]


def _length(stretch: slice) -> int:
    return stretch.stop - stretch.start


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float
) -> Tensor:
    """(1, H, W, D) queries, (1, K, W, D) keys and values of K heads → out (1, W, H, D)."""
    return _PackedAttention.apply(query, key, value, layout, scaling)


def _kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the forward pass: without AMX float32's kernels are as fast as bfloat16's, and exact."""
    if dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported():
        return torch.float32
    return dtype


class _PackedAttention(Function):
    """Inside, tokens come first: (W, H, D), as the layers around have them in memory."""

    @staticmethod
    def forward(ctx, query, key, value, layout, scaling):
        kernel_dtype = _kernel_dtype(query.dtype)
        q, k, v = (_tokens_first(tensor).to(kernel_dtype) for tensor in (query, key, value))
        k, v = (for_each_query_head(tensor, q) for tensor in (k, v))
        exact = torch.promote_types(query.dtype, torch.float32)
        out_WHD, lse_WH = q.new_empty(q.shape, dtype=exact), q.new_empty(q.shape[:2], dtype=exact)
        for stretches in layout.stretches:
            own = (stretches.take(tensor) for tensor in (q, k, v))
            found = attend(*own, causal=True, scaling=scaling)
            for whole, part in zip((out_WHD, lse_WH), found, strict=True):
                stretches.put(whole, part.to(exact))
        for queries, keys in layout.behind:
            of_part = (tensor[None] for tensor in (q[queries], k[keys], v[keys]))
            out, lse = attend(*of_part, causal=False, scaling=scaling)
            _join(out_WHD[queries], lse_WH[queries], out[0].to(exact), lse[0])
        out = out_WHD.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse_WH)
        ctx.layout, ctx.scaling = layout, scaling
        return out[None]

    @staticmethod
    def backward(ctx, grad):
        *inputs, out, lse = ctx.saved_tensors
        options = {"scaling": ctx.scaling, "by_products": products_pay(grad.dtype)}
        # Flash kernels of bfloat16 are no faster here, and on short replies many times slower.
        tensors = (grad[0], *map(_tokens_first, inputs), out)
        g, q, k, v, out = (tensor.to(lse.dtype) for tensor in tensors)
        totals = [torch.empty_like(tensor) for tensor in (q, k, v)]
        for stretches in ctx.layout.stretches:
            own = [stretches.take(tensor) for tensor in (g, q, k, v, out, lse)]
            stretches.blank(own[0], 0.0)
            stretches.blank(own[5], NOTHING)
            for total, part in zip(totals, gradients(*own, causal=True, **options), strict=True):
                stretches.put(total, part)
        for queries, keys in ctx.layout.behind:
            of_part = (g[queries], q[queries], k[keys], v[keys], out[queries], lse[queries])
            found = gradients(*(part[None] for part in of_part), causal=False, **options)
            for total, place, part in zip(totals, (queries, keys, keys), found, strict=True):
                total[place] += part[0]
        dtype = grad.dtype
        return *(total.transpose(0, 1)[None].to(dtype) for total in totals), None, None


def _tokens_first(tensor_1HWD: Tensor) -> Tensor:
    return tensor_1HWD[0].transpose(0, 1)


def _join(out_THD: Tensor, lse_TH: Tensor, other_THD: Tensor, other_TH: Tensor) -> None:
    """Adds the attention to other keys to a part's output and log-sum-exp, in place."""
    # A share by the difference: a log-sum-exp in the tens is rounded at its sixth digit.
    share_TH1 = torch.sigmoid(other_TH - lse_TH)[..., None]
    out_THD.lerp_(other_THD, share_TH1)
    torch.logaddexp(lse_TH, other_TH, out=lse_TH)

"""Attention over packed groups: a prompt once, its replies behind it, group after group.

Groups whose prompts begin alike are a family: their opening lies once in front of them. A token
sees its family's opening, its group's prompt and its own reply, itself and before. On the CPU
nothing that a mask would blank out is computed: an opening attends to itself, a prompt to the
opening and causally to itself, the replies' queries all at once to the keys of both, and each
reply causally to itself. The two parts are joined by their log-sum-exps, and the backward pass of
each part takes the joined output and log-sum-exp, as in ring attention (arXiv 2310.01889): exact,
by kernels that know causal and full attention alone. For a group of P prompt and G·R reply tokens
that is P²/2 + P·G·R + G·R²/2 products, less those that an opening saves, where a mask over a
micro-batch of W tokens costs W². On GPUs FlexAttention skips the blocks that the mask leaves
empty. Where a layer's window is shorter than a sequence, the CPU falls back to SDPA under the mask.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from learners.attention_kernels import attend, gradients, products_pay
from starec_ray.errors import ConfigError

PACKED_GROUPS = "packed_groups"  # the name among transformers' attention implementations
# For the log-sum-exp of filled-up places: e^(score - this) is 0, and no infinity takes part.
NOTHING = 1e4


@dataclass(frozen=True, slots=True)
class GroupSpan:
    """Where a group lies in a micro-batch: input tokens of its prompt, then of each reply."""

    start: int
    prompt: int  # without the family's opening
    replies: tuple[int, ...]  # none of them 0

    @property
    def prompt_end(self) -> int:
        return self.start + self.prompt

    @property
    def end(self) -> int:
        return self.prompt_end + sum(self.replies)


@dataclass(frozen=True, slots=True)
class FamilySpan:
    """Where a family lies: the input tokens that its prompts begin with, then its groups."""

    start: int
    opening: int  # may be 0
    groups: tuple[GroupSpan, ...]

    @property
    def opening_end(self) -> int:
        return self.start + self.opening


def attention_arguments(
    config: PreTrainedConfig, spans: Sequence[FamilySpan], positions_W: Tensor
) -> dict[str, Any]:
    """What the base model's forward pass takes beside tokens and positions.

    Raises ConfigError for models with attention layers of another kind than full or sliding.
    """
    windows = attention_windows(config)
    longest = int(positions_W.max()) + 1
    if positions_W.device.type == "cpu":
        if all(window is None or window >= longest for window in windows.values()):
            return {"attention_mask": None, "family_spans": spans}
        make: Callable[..., Tensor | BlockMask] = attention_mask
    else:
        make = block_mask
    masks = {kind: make(spans, positions_W, window) for kind, window in windows.items()}
    return {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}


def attention_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """The kinds of attention layers of a Hugging Face model config, and how far back each sees."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        kinds = {"full_attention" if window is None else "sliding_attention"}
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise ConfigError(
            f"Models of type {config.model_type!r} have {unknown.pop()!r} layers, for which the "
            "learner has no shared-prefix mask: choose a model with full or sliding attention."
        )
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def visibility(
    spans: Sequence[FamilySpan], positions_W: Tensor, window: int | None
) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
    """FlexAttention's mask function (batch, head, query, key) → bool for these groups.

    A query sees no further back than `window` positions (None: all).
    """
    device = positions_W.device
    # Of each piece of the row: its length, its group, the group of its family's opening, its reply.
    pieces, number = [], 0
    for family in spans:
        opening = number
        pieces.append((family.opening, opening, opening, 0))
        for group in family.groups:
            number += 1
            pieces.append((group.prompt, number, opening, 0))
            pieces += [(length, number, opening, r) for r, length in enumerate(group.replies, 1)]
        number += 1
    lengths_S, *places = torch.tensor(pieces, device=device).T
    groups_W, openings_W, replies_W = (
        each.repeat_interleave(lengths_S, output_size=len(positions_W)) for each in places
    )

    # Of a query: the first position that it sees. A tensor with and without a window, so that one
    # compiled kernel serves both.
    earliest_W = torch.zeros_like(positions_W) if window is None else positions_W - window + 1

    def sees(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        of_group = (groups_W[key] == groups_W[query]) | (groups_W[key] == openings_W[query])
        of_reply = (replies_W[key] == 0) | (replies_W[key] == replies_W[query])
        of_window = positions_W[key] >= earliest_W[query]
        return of_group & of_reply & of_window & (key <= query)

    return sees


def attention_mask(spans: Sequence[FamilySpan], positions_W: Tensor, window: int | None) -> Tensor:
    """Who attends to whom: (1, 1, W, W) bool, True where the row's query sees the key."""
    places_W = torch.arange(len(positions_W), device=positions_W.device)
    sees = visibility(spans, positions_W, window)
    return sees(0, 0, places_W[:, None], places_W[None, :])[None, None]


@torch.no_grad()  # one compiled function for updates and references
def block_mask(spans: Sequence[FamilySpan], positions_W: Tensor, window: int | None) -> BlockMask:
    """The same for FlexAttention, which computes the blocks that aren't empty.

    Compiled, so that blocks are counted without holding the whole mask.
    """
    width, device = len(positions_W), str(positions_W.device)
    sees = visibility(spans, positions_W, window)
    return create_block_mask(sees, None, None, width, width, device, _compile=True)


def packed_groups_attention(
    module: nn.Module,
    query_BHWD: Tensor,
    key_BKWD: Tensor,
    value_BKWD: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    scaling: float | None = None,
    family_spans: Sequence[FamilySpan] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' interface of attention, out (B, W, H, D). Without spans or mask: causal."""
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(
            module, query_BHWD, key_BKWD, value_BKWD, attention_mask, scaling=scaling, **kwargs
        )
    if family_spans is None:
        return sdpa_attention_forward(
            module, query_BHWD, key_BKWD, value_BKWD, attention_mask, scaling=scaling, **kwargs
        )
    unknown = [
        name for name in ("s_aux", "softcap", "position_bias") if kwargs.get(name) is not None
    ]
    if unknown:
        raise ConfigError(
            f"{type(module).__name__} attends with {unknown[0]}, which the learner's shared prefix "
            "has no form for on a CPU: choose another model."
        )
    if scaling is None:
        scaling = query_BHWD.shape[-1] ** -0.5
    sharing = query_BHWD.shape[1] // key_BKWD.shape[1]  # query heads of a key head
    key, value = (repeat_kv(tensor, sharing) for tensor in (key_BKWD, value_BKWD))
    out_BHWD = _PackedGroups.apply(query_BHWD, key, value, family_spans, scaling)
    return out_BHWD.transpose(1, 2), None


def _kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the forward pass: without AMX float32's kernels are as fast as bfloat16's, and exact."""
    if dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported():
        return torch.float32
    return dtype


class _PackedGroups(Function):
    """(1, H, W, D) query, key, value → out, on the CPU."""

    @staticmethod
    def forward(ctx, query, key, value, spans, scaling):
        tensors = [t.to(_kernel_dtype(t.dtype)) for t in (query, key, value)]
        out = torch.empty_like(tensors[0])
        lse = out.new_empty(out.shape[:3], dtype=torch.promote_types(out.dtype, torch.float32))
        for family in spans:
            opening = slice(family.start, family.opening_end)
            if family.opening:
                own = [t[:, :, opening] for t in tensors]
                out[:, :, opening], lse[:, :, opening] = attend(*own, causal=True, scaling=scaling)
            for group in family.groups:
                prompt, replies = _prompt_and_replies(group)
                own = [t[:, :, prompt] for t in tensors]
                near = attend(*own, causal=True, scaling=scaling)
                if family.opening:
                    seen = [t[:, :, opening] for t in tensors[1:]]
                    near = _join(attend(own[0], *seen, causal=False, scaling=scaling), near)
                out[:, :, prompt], lse[:, :, prompt] = near
                if not group.replies:
                    continue
                fold = _Fold(group.replies, out.device)
                own = [t[:, :, replies] for t in tensors]
                seen = [_behind(t, opening, prompt) for t in tensors[1:]]
                far = attend(own[0], *seen, causal=False, scaling=scaling)
                own = [fold.apart(t) for t in own]
                apart = attend(*own, causal=True, scaling=scaling)
                out[:, :, replies], lse[:, :, replies] = _join(far, map(fold.joined, apart))
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.spans, ctx.scaling = spans, scaling
        return out

    @staticmethod
    def backward(ctx, grad):
        *saved, lse = ctx.saved_tensors
        dtype, scaling = grad.dtype, ctx.scaling
        # Flash kernels of bfloat16 are no faster here, and on short replies many times slower.
        exact = torch.promote_types(dtype, torch.float32)
        tensors = [*(t.to(exact) for t in (grad, *saved)), lse]
        dq, dk, dv = (torch.zeros_like(tensor) for tensor in tensors[1:4])
        by_products = products_pay(dtype)

        def far(queries: slice, *keys: slice) -> None:
            """Adds the part of these queries' attention that goes to keys before their own."""
            grad_q, q, _, _, out_q, lse_q = (tensor[:, :, queries] for tensor in tensors)
            k, v = (_behind(tensor, *keys) for tensor in tensors[2:4])
            of_part = (grad_q, q, k, v, out_q, lse_q)
            dq_far, *d_seen = gradients(
                *of_part, causal=False, scaling=scaling, by_products=by_products
            )
            dq[:, :, queries] += dq_far
            sizes = [each.stop - each.start for each in keys]
            for total, found in zip((dk, dv), d_seen, strict=True):
                for place, part in zip(keys, found.split(sizes, dim=2), strict=True):
                    total[:, :, place] += part

        def near(places: slice) -> None:
            """Adds the part that is causal among these tokens."""
            own = [tensor[:, :, places] for tensor in tensors]
            add(places, gradients(*own, causal=True, scaling=scaling, by_products=by_products))

        def apart(replies: slice, fold: _Fold) -> None:
            """Adds the part that is causal within each reply."""
            own = [fold.apart(tensor[:, :, replies]) for tensor in tensors]
            fold.blank(own[0], 0.0)
            fold.blank(own[5], NOTHING)
            add(replies, map(fold.joined, gradients(*own, causal=True, scaling=scaling)))

        def add(places: slice, found: Iterable[Tensor]) -> None:
            for total, part in zip((dq, dk, dv), found, strict=True):
                total[:, :, places] += part

        for family in ctx.spans:
            opening = slice(family.start, family.opening_end)
            if family.opening:
                near(opening)
            for group in family.groups:
                prompt, replies = _prompt_and_replies(group)
                near(prompt)
                if family.opening:
                    far(prompt, opening)
                if group.replies:
                    apart(replies, _Fold(group.replies, grad.device))
                    far(replies, opening, prompt)
        return dq.to(dtype), dk.to(dtype), dv.to(dtype), None, None


def _prompt_and_replies(group: GroupSpan) -> tuple[slice, slice]:
    """Where they lie."""
    return slice(group.start, group.prompt_end), slice(group.prompt_end, group.end)


def _behind(tensor: Tensor, *places: slice) -> Tensor:
    """These places of (1, H, W, D), one behind the other."""
    filled = [tensor[:, :, place] for place in places if place.start < place.stop]
    return filled[0] if len(filled) == 1 else torch.cat(filled, dim=2)


def _join(far: Iterable[Tensor], near: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of attention to the keys of both parts."""
    (far_out, far_lse), (near_out, near_lse) = far, near
    # A share by the difference: a log-sum-exp in the tens is rounded at its sixth digit.
    far_share = torch.sigmoid(far_lse - near_lse)[..., None]
    out = torch.lerp(near_out.to(far_lse.dtype), far_out.to(far_lse.dtype), far_share)
    return out, torch.logaddexp(far_lse, near_lse)


class _Fold:
    """Replies one after the other (1, H, T, …) ⇄ side by side (G, H, longest, …).

    Short replies are filled up with the first one's first token.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
        self.longest = max(lengths)
        self.even = min(lengths) == self.longest
        lengths_G = torch.tensor(lengths, device=device)
        within_R = torch.arange(self.longest, device=device)
        self.filled_GR = within_R >= lengths_G[:, None]
        starts_G = lengths_G.cumsum(0) - lengths_G
        self.places_GR = (starts_G[:, None] + within_R).masked_fill(self.filled_GR, 0)
        self.kept_T = (~self.filled_GR).flatten()

    def apart(self, tensor_1HT: Tensor) -> Tensor:
        if self.even:
            return tensor_1HT[0].unflatten(1, (-1, self.longest)).transpose(0, 1).contiguous()
        return tensor_1HT[0][:, self.places_GR].transpose(0, 1).contiguous()

    def joined(self, tensor_GHR: Tensor) -> Tensor:
        tokens_HT = tensor_GHR.transpose(0, 1).flatten(1, 2)
        return (tokens_HT if self.even else tokens_HT[:, self.kept_T])[None]

    def blank(self, tensor_GHR: Tensor, value: float) -> None:
        """Sets the filled-up places of what `apart` made."""
        if not self.even:
            tensor_GHR.transpose(1, 2)[self.filled_GR] = value


AttentionInterface.register(PACKED_GROUPS, packed_groups_attention)

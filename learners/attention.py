"""Attention over packed groups: a prompt once, its replies behind it, group after group.

A token sees its group's prompt and its own reply, itself and before. On the CPU nothing that a
mask would blank out is computed: the prompt attends to itself, the replies' queries all at once
to the prompt's keys, and each reply causally to itself. The two parts of a reply's attention are
joined by their log-sum-exps, and the backward pass of each part takes the joined output and
log-sum-exp, as in ring attention (arXiv 2310.01889): exact, by kernels that know causal and full
attention alone. For a group of P prompt and G·R reply tokens that is P²/2 + P·G·R + G·R²/2
products, where a mask over a micro-batch of W tokens costs W². On GPUs FlexAttention skips the
blocks that the mask leaves empty. Where a layer's window is shorter than a sequence, the CPU falls
back to SDPA under the mask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from starec_ray.errors import ConfigError

PACKED_GROUPS = "packed_groups"  # the name among transformers' attention implementations
# For the log-sum-exp of filled-up places: e^(score - this) is 0, and no infinity takes part.
NOTHING = 1e4

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class GroupSpan:
    """Where a group lies in a micro-batch: input tokens of its prompt, then of each reply."""

    start: int
    prompt: int
    replies: tuple[int, ...]  # none of them 0

    @property
    def prompt_end(self) -> int:
        return self.start + self.prompt

    @property
    def end(self) -> int:
        return self.prompt_end + sum(self.replies)


def attention_arguments(
    config: PreTrainedConfig, spans: Sequence[GroupSpan], positions_W: Tensor
) -> dict[str, Any]:
    """What the base model's forward pass takes beside tokens and positions.

    Raises ConfigError for models with attention layers of another kind than full or sliding.
    """
    windows = attention_windows(config)
    longest = int(positions_W.max()) + 1
    if positions_W.device.type == "cpu":
        if all(window is None or window >= longest for window in windows.values()):
            return {"attention_mask": None, "group_spans": spans}
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
    spans: Sequence[GroupSpan], positions_W: Tensor, window: int | None
) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
    """FlexAttention's mask function (batch, head, query, key) → bool for these groups.

    A query sees no further back than `window` positions (None: all).
    """
    device = positions_W.device
    lengths = [length for span in spans for length in (span.prompt, *span.replies)]
    groups = [g for g, span in enumerate(spans) for _ in range(1 + len(span.replies))]
    replies = [r for span in spans for r in range(1 + len(span.replies))]
    lengths_S = torch.tensor(lengths, device=device)
    groups_W = torch.tensor(groups, device=device).repeat_interleave(lengths_S)
    replies_W = torch.tensor(replies, device=device).repeat_interleave(lengths_S)

    def sees(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        own = (replies_W[key] == 0) | (replies_W[key] == replies_W[query])
        visible = (groups_W[key] == groups_W[query]) & own & (key <= query)
        if window is not None:
            visible = visible & (positions_W[query] - positions_W[key] < window)
        return visible

    return sees


def attention_mask(spans: Sequence[GroupSpan], positions_W: Tensor, window: int | None) -> Tensor:
    """Who attends to whom: (1, 1, W, W) bool, True where the row's query sees the key."""
    places_W = torch.arange(len(positions_W), device=positions_W.device)
    sees = visibility(spans, positions_W, window)
    return sees(0, 0, places_W[:, None], places_W[None, :])[None, None]


def block_mask(spans: Sequence[GroupSpan], positions_W: Tensor, window: int | None) -> BlockMask:
    """The same for FlexAttention, which computes the blocks that aren't empty."""
    width = len(positions_W)
    sees = visibility(spans, positions_W, window)
    return create_block_mask(sees, None, None, width, width, device=str(positions_W.device))


def packed_groups_attention(
    module: nn.Module,
    query_BHWD: Tensor,
    key_BKWD: Tensor,
    value_BKWD: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    scaling: float | None = None,
    group_spans: Sequence[GroupSpan] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' interface of attention, out (B, W, H, D). Without spans or mask: causal."""
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(
            module, query_BHWD, key_BKWD, value_BKWD, attention_mask, scaling=scaling, **kwargs
        )
    if group_spans is None:
        return sdpa_attention_forward(
            module, query_BHWD, key_BKWD, value_BKWD, attention_mask, scaling=scaling, **kwargs
        )
    if scaling is None:
        scaling = query_BHWD.shape[-1] ** -0.5
    sharing = query_BHWD.shape[1] // key_BKWD.shape[1]  # query heads of a key head
    key, value = (repeat_kv(tensor, sharing) for tensor in (key_BKWD, value_BKWD))
    out_BHWD = _PackedGroups.apply(query_BHWD, key, value, group_spans, scaling)
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
        q, k, v = (t.to(_kernel_dtype(t.dtype)) for t in (query, key, value))
        out, lse = (
            torch.empty_like(q),
            q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32)),
        )
        for span in spans:
            prompt, replies = slice(span.start, span.prompt_end), slice(span.prompt_end, span.end)
            qp, kp, vp = (tensor[:, :, prompt] for tensor in (q, k, v))
            out[:, :, prompt], lse[:, :, prompt] = _flash(qp, kp, vp, 0.0, True, scale=scaling)
            if not span.replies:
                continue
            fold = _Fold(span.replies, q.device)
            far, far_lse = _flash(q[:, :, replies], kp, vp, 0.0, False, scale=scaling)
            own = [fold.apart(tensor[:, :, replies]) for tensor in (q, k, v)]
            near, near_lse = map(fold.joined, _flash(*own, 0.0, True, scale=scaling))
            # A share by the difference: a log-sum-exp in the tens is rounded at its sixth digit.
            far_share = torch.sigmoid(far_lse - near_lse)[..., None]
            out[:, :, replies] = torch.lerp(near.to(lse.dtype), far.to(lse.dtype), far_share)
            lse[:, :, replies] = torch.logaddexp(far_lse, near_lse)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.spans, ctx.scaling = spans, scaling
        return out

    @staticmethod
    def backward(ctx, grad):
        *saved, lse = ctx.saved_tensors
        dtype, scaling = grad.dtype, ctx.scaling
        # Those of bfloat16 are no faster here, and on short replies many times slower.
        tensors = [*(t.to(torch.promote_types(dtype, torch.float32)) for t in (grad, *saved)), lse]
        dq, dk, dv = (torch.empty_like(tensor) for tensor in tensors[1:4])
        for span in ctx.spans:
            prompt, replies = slice(span.start, span.prompt_end), slice(span.prompt_end, span.end)
            of_prompt = [tensor[:, :, prompt] for tensor in tensors]
            dq[:, :, prompt], dkp, dvp = _flash_backward(*of_prompt, 0.0, True, scale=scaling)
            if span.replies:
                fold = _Fold(span.replies, grad.device)
                grad_r, q_r, k_r, v_r, out_r, lse_r = (tensor[:, :, replies] for tensor in tensors)
                dq_far, dk_far, dv_far = _flash_backward(
                    grad_r, q_r, *of_prompt[2:4], out_r, lse_r, 0.0, False, scale=scaling
                )
                own = [fold.apart(tensor) for tensor in (grad_r, q_r, k_r, v_r, out_r, lse_r)]
                fold.blank(own[0], 0.0)
                fold.blank(own[5], NOTHING)
                dq_near, dk_near, dv_near = map(
                    fold.joined, _flash_backward(*own, 0.0, True, scale=scaling)
                )
                dq[:, :, replies] = dq_far + dq_near
                dk[:, :, replies], dv[:, :, replies] = dk_near, dv_near
                dkp, dvp = dkp + dk_far, dvp + dv_far
            dk[:, :, prompt], dv[:, :, prompt] = dkp, dvp
        return dq.to(dtype), dk.to(dtype), dv.to(dtype), None, None


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

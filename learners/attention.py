"""Attention over packed groups: a prompt once, its replies behind it, group after group.

Groups whose prompts begin alike are a family: their opening lies once in front of them. A token
sees its family's opening, its group's prompt and its own reply, itself and before. On CPUs
`learners.packed_attention` computes that and little more; on GPUs FlexAttention skips the blocks
that the mask leaves empty. Where a layer's window is shorter than a sequence, the CPU falls back to
SDPA under the mask.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from learners.packed_attention import PackedLayout, packed_attention, packed_layout
from learners.spans import FamilySpan
from starec_ray.errors import ConfigError

PACKED_GROUPS = "packed_groups"  # the name among transformers' attention implementations
# Below 128 tokens torch would take its decoding kernel, which has no form for some head counts.
FLEX_KERNEL = {"BACKEND": "TRITON"}


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
            return {"attention_mask": None, "packed": packed_layout(spans)}
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
    packed: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' interface of attention, out (B, W, H, D). Without mask or `packed`: causal."""
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(
            module,
            query_BHWD,
            key_BKWD,
            value_BKWD,
            attention_mask,
            scaling=scaling,
            kernel_options=FLEX_KERNEL,
            **kwargs,
        )
    if packed is None:
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
    width = value_BKWD.shape[-1]
    if narrower := query_BHWD.shape[-1] - width:  # the kernels know one width: zeros add nothing
        value_BKWD = nn.functional.pad(value_BKWD, (0, narrower))
    out = packed_attention(query_BHWD, key_BKWD, value_BKWD, packed, scaling)
    return out[..., :width], None


AttentionInterface.register(PACKED_GROUPS, packed_groups_attention)

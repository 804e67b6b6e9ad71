"""Attention over packed groups against PyTorch's own under a mask, number by number."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention

from learners.attention import (
    GroupSpan,
    attention_mask,
    block_mask,
    packed_groups_attention,
    visibility,
)

HEADS, KEY_HEADS, SIZE, SCALING = 4, 2, 16, 0.3
shapes = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(1, 12), max_size=5)), min_size=1, max_size=4
)


def lay_out(shape: list[tuple[int, list[int]]]) -> tuple[list[GroupSpan], Tensor]:
    """Spans and positions of groups of (prompt, replies) tokens."""
    spans: list[GroupSpan] = []
    positions: list[int] = []
    for prompt, replies in shape:
        spans.append(GroupSpan(spans[-1].end if spans else 0, prompt, tuple(replies)))
        positions += range(prompt)
        for reply in replies:
            positions += range(prompt, prompt + reply)
    return spans, torch.tensor(positions)


def inputs(width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(width)
    return tuple(
        torch.randn(1, heads, width, SIZE, dtype=dtype, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )


def under_mask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=SCALING, enable_gqa=True
    )


def with_gradients(out: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [out, *torch.autograd.grad(out, tensors, torch.randn_like(out))]


@given(shapes, st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-5)]))
@settings(max_examples=60)
def test_out_and_gradients_equal_those_under_a_mask(shape, dtype_and_tolerance):
    dtype, tolerance = dtype_and_tolerance
    spans, positions = lay_out(shape)
    tensors = inputs(len(positions), dtype)
    expected = under_mask(*tensors, attention_mask(spans, positions, None))
    out, _ = packed_groups_attention(
        torch.nn.Module(), *tensors, None, scaling=SCALING, group_spans=spans
    )
    for found, wanted in zip(
        with_gradients(out.transpose(1, 2), tensors),
        with_gradients(expected, tensors),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("amx", [False, True], ids=["float32 kernels", "bfloat16 kernels"])
def test_bfloat16_differs_by_its_rounding_alone(amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    spans, positions = lay_out([(50, [7, 9, 9]), (20, [4])])
    tensors = inputs(len(positions), torch.bfloat16)
    exact = tuple(tensor.detach().float().requires_grad_() for tensor in tensors)
    expected = under_mask(*exact, attention_mask(spans, positions, None))
    out, _ = packed_groups_attention(
        torch.nn.Module(), *tensors, None, scaling=SCALING, group_spans=spans
    )
    assert out.dtype == torch.bfloat16
    for found, wanted in zip(
        with_gradients(out.transpose(1, 2).float(), tensors),
        with_gradients(expected, exact),
        strict=True,
    ):
        torch.testing.assert_close(found.float(), wanted, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("window", [None, 5])
def test_flex_attention_sees_what_the_mask_shows(window):
    spans, positions = lay_out([(30, [5, 9, 1]), (140, [8, 8]), (7, [])])
    width = len(positions)
    mask = attention_mask(spans, positions, window)
    sees = visibility(spans, positions, window)
    torch.testing.assert_close(create_mask(sees, 1, 1, width, width, device="cpu"), mask)
    tensors = tuple(tensor.detach() for tensor in inputs(width))  # no backward pass on the CPU
    found = flex_attention(
        *tensors, block_mask=block_mask(spans, positions, window), scale=SCALING, enable_gqa=True
    )
    torch.testing.assert_close(found, under_mask(*tensors, mask), atol=2e-6, rtol=1e-5)

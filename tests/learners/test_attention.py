"""Attention over packed groups against PyTorch's own under a mask, number by number."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention
from transformers import PreTrainedConfig

from learners import attention_kernels, packed_attention
from learners.attention import (
    attention_arguments,
    attention_mask,
    block_mask,
    packed_groups_attention,
    visibility,
)
from learners.packed_attention import packed_layout
from learners.spans import FamilySpan, GroupSpan
from starec_ray.errors import ConfigError

HEADS, KEY_HEADS, SIZE, SCALING = 4, 2, 16, 0.3
Shape = list[tuple[int, list[tuple[int, list[int]]]]]
groups = st.tuples(
    st.integers(1, 40) | st.integers(85, 100), st.lists(st.integers(1, 12), max_size=5)
)
families = st.tuples(st.integers(0, 30), st.lists(groups, min_size=1, max_size=3))
shapes = st.lists(families, min_size=1, max_size=3)
ONE_OF_EACH: Shape = [(0, [(50, [7, 9, 9])]), (25, [(20, [4]), (6, [3, 3]), (9, [])])]


def lay_out(shape: Shape) -> tuple[list[FamilySpan], Tensor]:
    """Spans and positions of families of an opening and groups of (prompt, replies) tokens."""
    spans: list[FamilySpan] = []
    positions: list[int] = []
    for opening, of_family in shape:
        start, groups = len(positions), []
        positions += range(opening)
        for prompt, replies in of_family:
            groups.append(GroupSpan(len(positions), prompt, tuple(replies)))
            positions += range(opening, opening + prompt)
            for reply in replies:
                positions += range(opening + prompt, opening + prompt + reply)
        spans.append(FamilySpan(start, opening, tuple(groups)))
    return spans, torch.tensor(positions)


def tokens_first(tensor_BHWD: Tensor) -> Tensor:
    return tensor_BHWD.transpose(1, 2).contiguous().transpose(1, 2)


def inputs(
    width: int, dtype: torch.dtype = torch.float32, key_heads: int = KEY_HEADS
) -> tuple[Tensor, Tensor, Tensor]:
    """As a model's layers give them: tokens come before heads in memory."""
    torch.manual_seed(width)
    return tuple(
        tokens_first(torch.randn(1, heads, width, SIZE, dtype=dtype)).requires_grad_()
        for heads in (HEADS, key_heads, key_heads)
    )


def under_mask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=SCALING, enable_gqa=True
    )


def with_gradients(out: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [out, *torch.autograd.grad(out, tensors, torch.randn(out.shape, dtype=out.dtype))]


@given(
    shapes,
    st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-5)]),
    st.sampled_from([1, KEY_HEADS, HEADS]),
)
@settings(max_examples=60)
def test_out_and_gradients_equal_those_under_a_mask(shape, dtype_and_tolerance, key_heads):
    dtype, tolerance = dtype_and_tolerance
    spans, positions = lay_out(shape)
    tensors = inputs(len(positions), dtype, key_heads)
    expected = under_mask(*tensors, attention_mask(spans, positions, None))
    out, _ = packed_groups_attention(
        torch.nn.Module(), *tensors, None, scaling=SCALING, packed=packed_layout(spans)
    )
    for found, wanted in zip(
        with_gradients(out.transpose(1, 2), tensors),
        with_gradients(expected, tensors),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def test_scores_are_scaled_by_the_root_of_their_size_where_a_layer_names_no_scale():
    spans, positions = lay_out(ONE_OF_EACH)
    tensors = inputs(len(positions))
    mask = attention_mask(spans, positions, None)
    out, _ = packed_groups_attention(torch.nn.Module(), *tensors, None, packed=packed_layout(spans))
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(out.transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_window_counts_where_it_is_shorter_than_the_longest_sequence(beyond):
    spans, positions = lay_out(ONE_OF_EACH)
    longest = 50 + 9
    config = PreTrainedConfig(sliding_window=longest + beyond)
    arguments = attention_arguments(config, spans, positions)
    assert ("packed" in arguments) == (beyond >= 0)
    if beyond < 0:
        unlimited = attention_mask(spans, positions, None)
        hidden = (unlimited & ~arguments["attention_mask"])[0, 0].nonzero().tolist()
        assert hidden == [[50 + 7 + 9 - 1, 0], [50 + 7 + 9 + 9 - 1, 0]]
    else:
        assert arguments["attention_mask"] is None


@pytest.mark.parametrize("height", [100.0, 300.0, -800.0])
def test_parts_are_joined_by_the_difference_of_their_log_sum_exps(height):
    torch.manual_seed(0)
    lse = height + 2 * torch.randn(9, HEADS)
    other_lse = lse + 2 * torch.randn(9, HEADS)
    out, other = torch.randn(2, 9, HEADS, SIZE)
    both = torch.stack([lse, other_lse]).double()
    expected = (both.softmax(dim=0)[..., None] * torch.stack([out, other])).sum(dim=0)
    packed_attention._join(out, lse, other, other_lse)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0.0, check_dtype=False)
    torch.testing.assert_close(lse, both.logsumexp(0), atol=0.0, rtol=2e-7, check_dtype=False)


@pytest.mark.parametrize("products", [False, True], ids=["flash gradients", "by products"])
@pytest.mark.parametrize("amx", [False, True], ids=["float32 kernels", "bfloat16 kernels"])
def test_bfloat16_differs_by_its_rounding_alone(amx, products, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(packed_attention, "products_pay", lambda dtype: products)
    monkeypatch.setattr(attention_kernels, "LEAST_FOR_PRODUCTS", 8)
    spans, positions = lay_out(ONE_OF_EACH)
    tensors = inputs(len(positions), torch.bfloat16)
    exact = tuple(tensor.detach().float().requires_grad_() for tensor in tensors)
    expected = under_mask(*exact, attention_mask(spans, positions, None))
    out, _ = packed_groups_attention(
        torch.nn.Module(), *tensors, None, scaling=SCALING, packed=packed_layout(spans)
    )
    assert out.dtype == torch.bfloat16
    for found, wanted in zip(
        with_gradients(out.transpose(1, 2).float(), tensors),
        with_gradients(expected, exact),
        strict=True,
    ):
        torch.testing.assert_close(found.float(), wanted, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("what", ["s_aux", "softcap", "position_bias"])
def test_a_model_that_attends_in_a_way_of_its_own_is_refused(what):
    spans, positions = lay_out(ONE_OF_EACH)
    with pytest.raises(ConfigError, match=what):
        packed_groups_attention(
            torch.nn.Module(),
            *inputs(len(positions)),
            None,
            packed=packed_layout(spans),
            **{what: 1.0},
        )


Parts = tuple[tuple[Tensor, ...], dict[str, Any]]


@pytest.fixture(params=[(50, 50, True), (33, 21, False), (5, 70, False)], ids=str)
def part(request, monkeypatch) -> Parts:
    """Arguments of gradients in several tiles, as if there were more keys than these."""
    queries, keys, causal = request.param
    monkeypatch.setattr(attention_kernels, "LEAST_FOR_PRODUCTS", 0)
    monkeypatch.setattr(attention_kernels, "QUERIES", 16)
    # Of fewer heads than there are.
    monkeypatch.setattr(attention_kernels, "TILE_SCORES", 3 * 2 * 16 * keys)
    torch.manual_seed(queries)
    query, grad = (torch.randn(2, queries, HEADS, SIZE) for _ in range(2))
    key, value = (torch.randn(2, keys, KEY_HEADS, SIZE) for _ in range(2))
    options = {"causal": causal, "scaling": SCALING}
    out, lse = attention_kernels.attend(query, key, value, **options)
    return (grad, query, key, value, out, lse + 0.5), options


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Products as torch has them by default, whatever another test left."""
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_gradients_by_products_are_those_of_the_flash_kernel(part, monkeypatch):
    monkeypatch.setattr(attention_kernels, "_fast_products", nullcontext)  # they may round
    tensors, options = part
    for found, wanted in zip(
        attention_kernels.gradients(*tensors, **options, by_products=True),
        attention_kernels.gradients(*tensors, **options),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("exact_products")
def test_products_of_rounded_numbers_move_the_gradients_by_that_rounding_alone(part, monkeypatch):
    """As on a processor with AMX, of which the test needs none."""
    product = torch.bmm

    def rounded(one: Tensor, other: Tensor, out: Tensor | None = None) -> Tensor:
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        return product(one.bfloat16().float(), other.bfloat16().float(), out=out)

    tensors, options = part
    exact = attention_kernels.gradients(*tensors, **options)
    monkeypatch.setattr(torch, "bmm", rounded)
    for found, wanted in zip(
        attention_kernels.gradients(*tensors, **options, by_products=True), exact, strict=True
    ):
        assert (found - wanted).norm() < 1e-2 * wanted.norm()
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.usefixtures("exact_products")
def test_products_are_exact_again_after_one_that_failed(part):
    (grad, query, key, value, *rest), options = part
    with pytest.raises(RuntimeError, match="size"):
        attention_kernels.gradients(
            grad, query, key, value[..., :-1], *rest, **options, by_products=True
        )
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.parametrize(("dtype", "pay"), [("bfloat16", True), ("float32", False)])
def test_products_take_the_place_of_the_flash_kernel_where_bfloat16_is_faster(
    dtype, pay, monkeypatch
):
    monkeypatch.setattr(attention_kernels, "bfloat16_is_faster", lambda: True)
    assert attention_kernels.products_pay(getattr(torch, dtype)) == pay
    monkeypatch.setattr(attention_kernels, "bfloat16_is_faster", lambda: False)
    assert not attention_kernels.products_pay(getattr(torch, dtype))


def test_a_token_sees_its_opening_its_prompt_its_reply_and_nothing_of_the_others():
    spans, positions = lay_out([(1, [(1, [1, 2]), (1, [])]), (0, [(1, [])])])
    seen = attention_mask(spans, positions, None)[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],  # the opening
        [1, 1, 0, 0, 0, 0, 0],  # a prompt
        [1, 1, 1, 0, 0, 0, 0],  # its first reply
        [1, 1, 0, 1, 0, 0, 0],  # its second
        [1, 1, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],  # another prompt of the family
        [0, 0, 0, 0, 0, 0, 1],  # another family
    ]
    assert positions.tolist() == [0, 1, 2, 2, 3, 1, 0]


def test_flex_attention_sees_what_the_mask_shows_compiled_twice_for_all_widths_and_windows():
    """What is compiled here is FlexAttention's plain form: on the CPU it has no backward pass."""
    compiled = []

    def keep(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable:
        compiled.append(graph)
        return graph.forward

    flex = torch.compile(flex_attention, backend=keep)
    long: Shape = [*ONE_OF_EACH, (0, [(140, [8, 8])])]
    for shape, window in ((long, None), (long, 5), (long * 2, 5), (long * 3, None)):
        spans, positions = lay_out(shape)
        width = len(positions)
        mask = attention_mask(spans, positions, window)
        sees = visibility(spans, positions, window)
        torch.testing.assert_close(create_mask(sees, 1, 1, width, width, device="cpu"), mask)
        tensors = tuple(tensor.detach() for tensor in inputs(width))
        with torch.compiler.set_stance("force_eager"):  # a C++ compiler is slow
            blocks = block_mask(spans, positions, window)
        found = flex(*tensors, block_mask=blocks, scale=SCALING, enable_gqa=True)
        torch.testing.assert_close(found, under_mask(*tensors, mask), atol=2e-6, rtol=1e-5)
    assert len(compiled) == 2  # one width, then any

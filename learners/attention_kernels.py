"""Causal and full attention on a CPU: the output with its log-sum-exp, and gradients from both.

They take query, key and value (B, H, Q or K, D) and give log-sum-exps (B, H, Q) of the scaled
scores. The gradients may be those of a part of the keys alone: with the output and log-sum-exp of
all of them, the parts' gradients add up.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from starec_ray.models.resolve import multiplies_bfloat16

QUERIES = 256  # of a tile of scores, whose size is that of a processor's cache
TILE_SCORES = 2**20

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Q, D) and log-sum-exps, float32 for bfloat16."""
    return _flash(query, key, value, 0.0, causal, scale=scaling)


def gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    causal: bool,
    scaling: float,
    by_products: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value, from the output's (B, H, Q, D); float32 or float64.

    `by_products` are float32's alone, which may be rounded as bfloat16's are on their way: where
    `products_pay` they are faster than the flash kernel.
    """
    if by_products:
        return _by_products(grad, query, key, value, out, lse, causal, scaling)
    return _flash_backward(grad, query, key, value, out, lse, 0.0, causal, scale=scaling)


def products_pay(dtype: torch.dtype) -> bool:
    """Whether bfloat16 is the precision asked for, and this processor multiplies it itself."""
    return dtype == torch.bfloat16 and multiplies_bfloat16()


def _by_products(grad, query, key, value, out, lse, causal, scaling):
    """Batched products, tile by tile (FlashAttention-2, arXiv 2307.08691, Algorithm 2)."""
    batch, others = query.shape[:2], (grad, query, key, value, out)
    grad, query, key, value, out = (tensor.flatten(0, 1) for tensor in others)
    delta = (grad * out).sum(dim=-1, keepdim=True)
    normaliser = lse.flatten(0, 1)[..., None]
    d_query, d_key, d_value = (
        torch.empty_like(query),
        torch.zeros_like(key),
        torch.zeros_like(value),
    )
    with _fast_products():
        for own, seen, later in _tiles(query, key, causal):
            # oneDNN would copy slices for each product that they are in.
            g, q, k, v = (t.contiguous() for t in (grad[own], query[own], key[seen], value[seen]))
            odds = torch.bmm(q, k.mT).mul_(scaling).sub_(normaliser[own])
            if later is not None:
                odds[:, :, -later.shape[1] :] += later
            odds.exp_()
            d_value[seen] += torch.bmm(odds.mT, g)
            d_scores = torch.bmm(g, v.mT).sub_(delta[own]).mul_(odds)
            d_query[own] = torch.bmm(d_scores, k)
            d_key[seen] += torch.bmm(d_scores.mT, q)
    found = (d_query.mul_(scaling), d_key.mul_(scaling), d_value)
    d_query, d_key, d_value = (tensor.unflatten(0, batch) for tensor in found)
    return d_query, d_key, d_value


def _tiles(
    query_HQD: Tensor, key_HKD: Tensor, causal: bool
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice], Tensor | None]]:
    """Heads and queries, heads and the keys they see, and what the last of the scores get added
    where queries are causal."""
    (heads, queries, _), keys = query_HQD.shape, key_HKD.shape[1]
    size = min(queries, QUERIES)
    later = torch.full((size, size), -torch.inf).triu_(1) if causal else None
    for start in range(0, queries, size):
        end = min(start + size, queries)
        seen = end if causal else keys
        tiles = -(-heads * (end - start) * seen // TILE_SCORES)
        together = -(-heads // tiles)  # few sizes, for each of which oneDNN keeps a kernel
        barred = None if later is None else later[: end - start, : end - start]
        for head in range(0, heads, together):
            of_heads = slice(head, head + together)
            yield (of_heads, slice(start, end)), (of_heads, slice(0, seen)), barred


@contextmanager
def _fast_products() -> Iterator[None]:
    """Products of float32 may be rounded as bfloat16's are, and are added up in float32.

    With AMX they are; without it oneDNN's float32 takes the place of MKL's, and is faster on an
    AMD with AVX-512. For all threads of the process, while it lasts.
    """
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before

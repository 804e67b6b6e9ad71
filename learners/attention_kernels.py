"""Causal and full attention on a CPU: the output with its log-sum-exp, and gradients from both.

Tokens come before heads, as the layers around have them in memory: N pieces side by side of T
queries (N, T, H, D), and of their keys and values (N, U, K, D), of whose K heads each serves H / K
heads of the queries. Log-sum-exps are those of the scaled scores, (N, T, H). The gradients may be
those of a part of the keys alone: with the output and log-sum-exp of all of them, the parts'
gradients add up.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import local

import torch
from torch import Tensor

from starec_ray.models.resolve import bfloat16_is_faster

# Of a tile of scores: about how many queries where they are causal, and the scores of all heads and
# pieces. A processor's cache holds two such tiles.
QUERIES, TILE_SCORES = 192, 3 * 2**20
# Queries. Of fewer causal ones the flash kernel is faster than products.
LEAST_FOR_PRODUCTS = 128

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_kept = local()


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    """Output (N, T, H, D) and log-sum-exps, float32 for bfloat16."""
    key, value = (for_each_query_head(t, query) for t in (key, value))
    heads_first = (t.transpose(1, 2) for t in (query, key, value))
    out, lse = _flash(*heads_first, 0.0, causal, scale=scaling)
    return out.transpose(1, 2), lse.transpose(1, 2)


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
    """Of query, key and value, from the output's (N, T, H, D); float32 or float64.

    `by_products`, of float32 alone, allows products that are rounded as bfloat16's on their way:
    where `products_pay` and pieces are long they are faster than the flash kernel.
    """
    if by_products and not (causal and query.shape[1] < LEAST_FOR_PRODUCTS):
        return _by_products(grad, query, key, value, out, lse, causal=causal, scaling=scaling)
    heads = key.shape[2]
    key, value = (for_each_query_head(t, query) for t in (key, value))
    heads_first = (t.transpose(1, 2) for t in (grad, query, key, value, out, lse))
    found = _flash_backward(*heads_first, 0.0, causal, scale=scaling)
    d_query, *of_keys = (t.transpose(1, 2) for t in found)
    d_key, d_value = (t.unflatten(2, (heads, -1)).sum(dim=3) for t in of_keys)
    return d_query, d_key, d_value


def products_pay(dtype: torch.dtype) -> bool:
    """Whether bfloat16 is the precision asked for, and this processor multiplies it faster."""
    return dtype == torch.bfloat16 and bfloat16_is_faster()


def for_each_query_head(key: Tensor, query: Tensor) -> Tensor:
    """Keys or values (…, K, D) → (…, H, D): each as often as heads of the query share it."""
    sharing = query.shape[-2] // key.shape[-2]
    return key if sharing == 1 else key.repeat_interleave(sharing, dim=-2)


def _by_products(
    grad_NTHD: Tensor,
    query_NTHD: Tensor,
    key_NUKD: Tensor,
    value_NUKD: Tensor,
    out_NTHD: Tensor,
    lse_NTH: Tensor,
    *,
    causal: bool,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batched products, tile by tile (FlashAttention-2, arXiv 2307.08691, Algorithm 2).

    P = N·K products at once, whose rows are the queries of the S heads that share a key head.
    """
    heads = key_NUKD.shape[2]
    delta_NTH = (grad_NTHD * out_NTHD).sum(dim=-1)
    grad_PSTD, query_PSTD, delta_PST, lse_PST = (
        tensor.unflatten(2, (heads, -1)).movedim(1, 3).flatten(0, 1)
        for tensor in (grad_NTHD, query_NTHD, delta_NTH, lse_NTH)
    )
    key_PUD, value_PUD = (t.transpose(1, 2).flatten(0, 1) for t in (key_NUKD, value_NUKD))
    d_query_PSTD = torch.empty_like(query_PSTD)
    d_key_PUD, d_value_PUD = torch.zeros_like(key_PUD), torch.zeros_like(value_PUD)
    (products, sharing, length, _), keys = query_PSTD.shape, key_PUD.shape[1]
    most = QUERIES if causal else max(QUERIES, TILE_SCORES // (products * sharing * keys))
    block = -(-length // max(1, round(length / most)))
    together = min(products, max(1, TILE_SCORES // (sharing * block * keys)))
    together = -(-products // -(-products // together))  # as even as can be
    later_BB = query_NTHD.new_full((block, block), -torch.inf).triu_(1) if causal else None
    rooms = _rooms(max(TILE_SCORES, together * sharing * block * keys))
    with _fast_products():
        for some, own, seen in _tiles(products, together, length, block, None if causal else keys):
            # oneDNN would copy slices for each product that they are in.
            grad_MRD, query_MRD = (
                t[some, :, own].flatten(1, 2).contiguous() for t in (grad_PSTD, query_PSTD)
            )
            key_MVD, value_MVD = (t[some, seen].contiguous() for t in (key_PUD, value_PUD))
            lse_MR, delta_MR = (t[some, :, own].flatten(1, 2) for t in (lse_PST, delta_PST))
            queries = own.stop - own.start
            d_query_MRD, d_key_MVD, d_value_MVD = _of_tile(
                grad_MRD,
                query_MRD * scaling,
                key_MVD,
                value_MVD,
                lse_MR,
                delta_MR,
                None if later_BB is None else later_BB[:queries, :queries],
                rooms,
            )
            d_query_PSTD[some, :, own] = d_query_MRD.unflatten(1, (sharing, -1))
            d_key_PUD[some, seen] += d_key_MVD
            d_value_PUD[some, seen] += d_value_MVD
    d_query_PSTD.mul_(scaling)
    d_query_NTHD = d_query_PSTD.unflatten(0, (-1, heads)).movedim(3, 1).flatten(2, 3)
    d_key_NUKD, d_value_NUKD = (
        tensor.unflatten(0, (-1, heads)).transpose(1, 2) for tensor in (d_key_PUD, d_value_PUD)
    )
    return d_query_NTHD, d_key_NUKD, d_value_NUKD


def _of_tile(
    grad_MRD: Tensor,
    query_MRD: Tensor,
    key_MVD: Tensor,
    value_MVD: Tensor,
    lse_MR: Tensor,
    delta_MR: Tensor,
    later_TT: Tensor | None,
    rooms: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scaled queries, keys and values from M products of R rows and V keys.

    Args:
        delta_MR: the rows' sums of gradient times output.
        later_TT: -inf where the last T keys come after a head's T queries; None blanks nothing.
        rooms: where the scores are computed.
    """
    size = (*query_MRD.shape[:2], key_MVD.shape[1])
    odds_MRV, d_scores_MRV = (room[: math.prod(size)].view(size) for room in rooms)
    torch.bmm(query_MRD, key_MVD.mT, out=odds_MRV).sub_(lse_MR[..., None])
    if later_TT is not None:
        queries = len(later_TT)
        diagonal = odds_MRV.unflatten(1, (-1, queries))[..., -queries:]
        diagonal += later_TT
    odds_MRV.exp_()
    d_value_MVD = torch.bmm(odds_MRV.mT, grad_MRD)
    torch.bmm(grad_MRD, value_MVD.mT, out=d_scores_MRV).sub_(delta_MR[..., None]).mul_(odds_MRV)
    d_query_MRD = torch.bmm(d_scores_MRV, key_MVD)
    d_key_MVD = torch.bmm(d_scores_MRV.mT, query_MRD)
    return d_query_MRD, d_key_MVD, d_value_MVD


def _tiles(
    products: int, together: int, length: int, block: int, keys: int | None
) -> Iterator[tuple[slice, slice, slice]]:
    """Some of the products, some of their queries, and the keys that those see: all of so many, or
    as many as there are queries until then."""
    for first in range(0, products, together):
        for start in range(0, length, block):
            end = min(start + block, length)
            yield slice(first, first + together), slice(start, end), slice(0, keys or end)


def _rooms(scores: int) -> tuple[Tensor, Tensor]:
    """Where tiles are computed, of this thread: kept, so that the cache keeps them too."""
    if not hasattr(_kept, "rooms") or len(_kept.rooms[0]) < scores:
        _kept.rooms = tuple(torch.empty(scores, dtype=torch.float32) for _ in range(2))
    return _kept.rooms


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

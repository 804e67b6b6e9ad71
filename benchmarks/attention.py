"""Attention of packed groups against SDPA under their mask, and what the CPU's products reach.

Forward + backward of one layer's attention, in turns, in the processor's milliseconds of one
thread; a shape P:G:R:N is N groups of a prompt of P tokens and G answers that add R tokens each,
and with P:G:R:N:O the first O of the P tokens are those of all groups. The gradients alone are
those of a group's answers to its prompt's keys, in float32: by the flash kernel, and by the
products that take its place where bfloat16 is native. The rates are those of a linear layer, and
of attention's two products, with SmolLM2-135M's shapes.

    python benchmarks/attention.py --json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from learners.attention import attention_mask, packed_groups_attention
from learners.attention_kernels import attend, gradients
from learners.packed_attention import packed_layout
from learners.spans import FamilySpan, GroupSpan
from starec_ray.cluster.host_memory import keep_freed_memory

SHAPES = ["290:4:26:2", "290:4:26:8", "290:4:26:8:85", "330:8:63:1", "1200:8:79:1"]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
HEADS, KEY_HEADS, SIZE, WIDTH, INNER, TOKENS = 9, 3, 64, 576, 1536, 800


def cpu_seconds(*tasks: Callable[[], object], repeats: int) -> list[float]:
    """Median processor seconds of each task, run in turns, after a turn that warms up."""
    taken: list[list[float]] = [[] for _ in tasks]
    for repeat in range(repeats + 1):
        for task, seconds in zip(tasks, taken, strict=True):
            start = time.process_time()
            task()
            if repeat:
                seconds.append(time.process_time() - start)
    return [statistics.median(seconds) for seconds in taken]


def compare(shape: str, dtype: str, repeats: int) -> dict[str, object]:
    """Both ways of one shape: milliseconds of each, and how far their outputs lie apart."""
    prompt, answers, added, groups, *alike = map(int, shape.split(":"))
    opening = alike[0] if alike else 0
    spans, positions = [], [*range(opening)]
    for _ in range(groups):
        spans.append(GroupSpan(len(positions), prompt - opening, (added,) * answers))
        positions += [*range(opening, prompt), *([*range(prompt, prompt + added)] * answers)]
    families = [FamilySpan(0, opening, tuple(spans))]
    if not opening:
        families = [FamilySpan(span.start, 0, (span,)) for span in spans]
    mask = attention_mask(families, torch.tensor(positions), None)
    query, key, value = (
        torch.randn(1, heads, len(positions), SIZE, dtype=DTYPES[dtype], requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    gradient = torch.randn_like(query)
    module, layout = torch.nn.Module(), packed_layout(families)

    def masked() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

    def packed() -> torch.Tensor:
        out, _ = packed_groups_attention(module, query, key, value, None, packed=layout)
        return out.transpose(1, 2)

    before, after = cpu_seconds(
        lambda: masked().backward(gradient), lambda: packed().backward(gradient), repeats=repeats
    )
    apart = (masked() - packed()).abs().max().item()
    figures = {"mask_ms": 1e3 * before, "packed_ms": 1e3 * after, "max_difference": apart}
    return {"shape": shape, "dtype": dtype, **figures}


def compare_gradients(shape: str, repeats: int) -> dict[str, object]:
    """Milliseconds of both ways, and how far they lie apart, by the flash kernel's norm."""
    prompt, answers, added, *_ = map(int, shape.split(":"))
    query, grad = (torch.randn(1, answers * added, HEADS, SIZE) for _ in range(2))
    key, value = (torch.randn(1, prompt, KEY_HEADS, SIZE) for _ in range(2))
    options: dict[str, Any] = {"causal": False, "scaling": SIZE**-0.5}
    tensors = (grad, query, key, value, *attend(query, key, value, **options))
    ways = [
        lambda by=by: gradients(*tensors, **options, by_products=by)  # type: ignore[misc]
        for by in (False, True)
    ]
    flash, products = cpu_seconds(*ways, repeats=repeats)
    expected, found = (torch.cat([part.flatten() for part in way()]) for way in ways)
    apart = ((found - expected).norm() / expected.norm()).item()
    figures = {"flash_ms": 1e3 * flash, "products_ms": 1e3 * products}
    return {"shape": shape, **figures, "relative_difference": apart}


def rates(dtype: str, repeats: int) -> dict[str, object]:
    """GFLOP/s of a linear layer and of attention's two products over 800 tokens."""
    kind = DTYPES[dtype]
    inputs, weights = torch.randn(TOKENS, WIDTH, dtype=kind), torch.randn(INNER, WIDTH, dtype=kind)
    query, value = (torch.randn(HEADS, TOKENS, SIZE, dtype=kind) for _ in range(2))
    key, scores = query.transpose(1, 2).contiguous(), torch.randn(HEADS, TOKENS, TOKENS, dtype=kind)
    linear, products, weighted = cpu_seconds(
        lambda: F.linear(inputs, weights),
        lambda: query @ key,
        lambda: scores @ value,
        repeats=repeats,
    )
    layer, product = 2 * TOKENS * WIDTH * INNER / 1e9, 2 * HEADS * TOKENS * TOKENS * SIZE / 1e9
    found = {"linear": layer / linear, "query_key": product / products}
    return {"dtype": dtype, **found, "scores_value": product / weighted}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="P:G:R:N[:O]")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5, help="after one that warms up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()
    for shape in args.shapes:
        prompt, *_, last = map(int, shape.split(":"))
        if shape.count(":") == 4 and last >= prompt:
            parser.error(f"{shape}: an opening is shorter than its prompt.")

    torch.set_num_threads(1)
    keep_freed_memory()  # as learners do
    torch.manual_seed(args.seed)
    runs = [compare(shape, dtype, args.repeats) for shape in args.shapes for dtype in args.dtypes]
    ways = [compare_gradients(shape, args.repeats) for shape in args.shapes]
    gflops = [rates(dtype, args.repeats) for dtype in args.dtypes]
    found = {"attention": runs, "gradients": ways, "gflop_per_second": gflops}
    if args.json:
        print(json.dumps({"settings": vars(args), **found}))
        return
    titles = ("attention, forward + backward", "gradients alone", "GFLOP/s, one thread")
    for title, rows in zip(titles, found.values(), strict=True):
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
        Console().print(table)


if __name__ == "__main__":
    main()

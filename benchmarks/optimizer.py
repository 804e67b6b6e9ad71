"""AdamW's step on the CPU: PyTorch's implementations and the one that DeepSpeed compiles.

One flat float32 tensor stands for the master weights, as ZeRO hands them to the optimiser. Each
way takes the same gradients from the same start; "max_difference" is to PyTorch's plain loop after
all steps. DeepSpeed's needs a C++ compiler and a minute on first use.

    python benchmarks/optimizer.py --json
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

LR, WEIGHT_DECAY = 1e-4, 0.01
PLAIN = "torch, plain loop"


def torch_adamw(**how: bool) -> Callable[[nn.Parameter], torch.optim.Optimizer]:
    return lambda weights: torch.optim.AdamW([weights], lr=LR, weight_decay=WEIGHT_DECAY, **how)


def deepspeed_adamw(weights: nn.Parameter) -> torch.optim.Optimizer:
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam([weights], lr=LR, weight_decay=WEIGHT_DECAY, adamw_mode=True)


WAYS = {
    PLAIN: torch_adamw(foreach=False, fused=False),
    "torch, foreach": torch_adamw(foreach=True),
    "torch, fused": torch_adamw(fused=True),
    "DeepSpeedCPUAdam": deepspeed_adamw,
}


def measure(make: Callable, start: Tensor, gradients: list[Tensor]) -> tuple[float, Tensor]:
    """Median seconds of a step but the first, and the weights after all steps."""
    weights = nn.Parameter(start.clone())
    optimizer, seconds = make(weights), []
    for gradient in gradients:
        weights.grad = gradient
        began = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]), weights.detach()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=int, default=134_515_008, help="SmolLM2-135M's")
    parser.add_argument("--steps", type=int, default=6, help="of which the first warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    start = torch.randn(args.parameters) * 0.02
    gradients = [torch.randn(args.parameters) * 0.01] * args.steps
    runs, expected = {}, None
    for name, make in WAYS.items():
        seconds, weights = measure(make, start, gradients)
        expected = weights if expected is None else expected
        difference = (weights - expected).abs().max().item()
        runs[name] = {"seconds": seconds, "max_difference": difference}
    if args.json:
        print(json.dumps({"settings": vars(args), "torch": torch.__version__, "runs": runs}))
        return
    table = Table(title=f"a step of AdamW on {args.parameters:,} parameters")
    for column in ("way", "seconds", "differs by"):
        table.add_column(column, justify="right")
    for name, run in runs.items():
        table.add_row(name, f"{run['seconds']:.3f}", f"{run['max_difference']:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()

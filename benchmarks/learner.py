"""The learner's forward and backward pass: one prompt for all its answers, against full copies.

A GRPO group is a prompt of P tokens and G answers of R tokens. "padded" is what general trainers
do: G rows of P + R tokens, logits of the whole vocabulary at the answers, log-softmax, gather.
"shared" is the learner's own pass (`learners.batching`, `learners.logprobs`). Each runs in a
process of its own, pass by pass in turns, so that both meet the same machine. "cpu" figures are the
processor's seconds, over all threads: the ones to go by on a machine that does other work beside.

Log-probs and gradients of both ways are held, number by number, against the padded pass in
float64; `apart` is how far the two ways lie from each other.

    python benchmarks/learner.py --json
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import starec_ray.data
from learners.batching import plan
from learners.logprobs import ReplyScorer
from starec_ray.cluster.host_memory import keep_freed_memory
from starec_ray.models.resolve import resolve_dtype, resolve_model
from starec_ray.schemas import SEQUENCES

SHAPES = ["1200:8:80", "330:8:64"]
FILMS = Path(starec_ray.data.__file__).with_name("films.csv")


@dataclass(frozen=True)
class Task:
    """One measurement: `way` is "padded" or "shared"."""

    way: str
    model_path: str
    dtype: str
    device: str
    threads: int
    prompt: int
    group: int
    reply: int
    padded_rows: int
    seed: int


def sequences(task: Task) -> pa.Table:
    """One group as SEQUENCES, of what is written about films; the same for the same seed."""
    rng = np.random.default_rng(task.seed)
    tokenizer = AutoTokenizer.from_pretrained(task.model_path)
    lines = FILMS.read_text().splitlines()[1:]

    def tokens(count: int) -> list[int]:
        ids: list[int] = []
        while len(ids) < count:
            ids += tokenizer("\n".join(rng.permutation(lines)))["input_ids"]
        return ids[:count]

    prompt = tokens(task.prompt)
    rows = [
        {
            "component": "rank",
            "group": 0,
            "prompt_ids": prompt,
            "reply_ids": tokens(task.reply),
            "logprobs": [0.0] * task.reply,
            "advantages": [float(rng.normal())] * task.reply,
        }
        for _ in range(task.group)
    ]
    return pa.Table.from_pylist(rows, schema=SEQUENCES)


def padded_logprobs(model: PreTrainedModel, batch: pa.Table, device: str) -> Tensor:
    """Log-probs of all answer tokens, in the order of the rows."""
    prompts = torch.tensor(batch["prompt_ids"].to_pylist(), device=device)
    replies = torch.tensor(batch["reply_ids"].to_pylist(), device=device)
    ids = torch.cat([prompts, replies], dim=1)
    keep = replies.shape[1] + 1
    logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(-1).gather(2, replies[:, :, None]).flatten()


def shared_logprobs(scorer: ReplyScorer | None, batch: pa.Table, device: str) -> Tensor:
    """The same by the learner's own pass."""
    width = len(batch["prompt_ids"][0]) + sum(len(r) for r in batch["reply_ids"].to_pylist())
    [micro_batch] = plan(batch, micro_batch_tokens=width).micro_batches
    assert scorer

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(getattr(micro_batch, name)).to(device)

    logprobs, _ = scorer(
        tensor("token_ids"),
        tensor("positions"),
        micro_batch.spans,
        tensor("predictors"),
        tensor("targets"),
        torch.ones(len(micro_batch.targets), device=device),
        tensor("choice_ids"),
        tensor("choice_mask"),
    )
    return logprobs


class Passes:
    """Forward and backward passes of one way, in a process of its own."""

    def __init__(self, task: Task) -> None:
        forget_peak()
        torch.set_num_threads(task.threads)
        if task.device == "cpu":
            keep_freed_memory()
        self.task = task
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            task.model_path, dtype=getattr(torch, task.dtype), attn_implementation="sdpa"
        )
        self.model.to(task.device)
        # It changes how the model attends.
        self.scorer = ReplyScorer(self.model) if task.way == "shared" else None
        self.batch = sequences(task)
        self.logprobs: list[Tensor] = []

    def run(self) -> tuple[float, float]:
        """Seconds of one forward and backward pass over the group: the clock's, the processor's."""
        self.model.zero_grad(set_to_none=True)
        self.logprobs = []
        rows = self.task.padded_rows if self.task.way == "padded" else 0
        size = rows or self.task.group
        _synchronize(self.task.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        for i in range(0, self.task.group, size):
            part = self.batch.slice(i, size)
            if self.task.way == "padded":
                logprobs = padded_logprobs(self.model, part, self.task.device)
            else:
                logprobs = shared_logprobs(self.scorer, part, self.task.device)
            advantages = torch.tensor(part["advantages"].to_pylist(), device=self.task.device)
            loss = -(advantages.flatten() * logprobs).sum()
            (loss / (self.task.group * self.task.reply)).backward()
            self.logprobs.append(logprobs.detach().cpu())
        _synchronize(self.task.device)
        return time.perf_counter() - start, time.process_time() - cpu_start

    def save(self, path: str) -> None:
        """The last pass's numbers."""
        gradients = {
            name: parameter.grad.cpu()
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        save_file({"logprobs": torch.cat(self.logprobs), **gradients}, path)

    def peak_gib(self) -> float:
        """Most memory held at once: of the GPU, or of the process."""
        if self.task.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return peak_bytes() / 2**30


def forget_peak() -> None:
    """The most memory held at once begins anew: a process begins with its parent's."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


_passes: Passes


def _begin(task: Task) -> None:
    global _passes
    _passes = Passes(task)


def _ask(method: str, *args: Any) -> Any:
    return getattr(_passes, method)(*args)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def errors(found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Of log-probs the largest difference; of gradients that of all, by the reference's norm."""
    differences = {name: found[name].double() - reference[name].double() for name in reference}
    logprobs = differences.pop("logprobs")
    size = sum(g.double().square().sum() for n, g in reference.items() if n != "logprobs")
    off = sum(difference.square().sum() for difference in differences.values())
    return {
        "max_logprob_error": float(logprobs.abs().max()),
        "relative_gradient_error": float(off / size) ** 0.5,
    }


@lru_cache(maxsize=1)
def float64_numbers(task: Task) -> dict[str, Tensor]:
    """Log-probs and gradients of the padded pass in float64."""
    with (
        tempfile.NamedTemporaryFile(suffix=".safetensors") as file,
        get_context("spawn").Pool(1, _begin, (task,)) as process,
    ):
        process.apply(_ask, ("run",))
        process.apply(_ask, ("save", file.name))
        return load_file(file.name)


def compare(args: argparse.Namespace, shape: str, dtype: str) -> dict[str, Any]:
    """Both ways on one shape, in turns."""
    prompt, group, reply = map(int, shape.split(":"))
    path = resolve_model(args.model)
    results: dict[str, Any] = {"shape": shape, "dtype": dtype}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ways = {}
        for way in ("padded", "shared"):
            task = Task(
                way=way,
                model_path=path,
                dtype=dtype,
                device=args.device,
                threads=args.threads,
                prompt=prompt,
                group=group,
                reply=reply,
                padded_rows=args.padded_rows,
                seed=args.seed,
            )
            ways[way] = stack.enter_context(get_context("spawn").Pool(1, _begin, (task,)))
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for repeat in range(args.repeats + 1):
            for way, process in ways.items():
                took = process.apply(_ask, ("run",))
                if repeat:  # the first warms up
                    seconds[way].append(took)
        numbers = {}
        for way, process in ways.items():
            file = Path(folder) / f"{way}.safetensors"
            process.apply(_ask, ("save", str(file)))
            numbers[way] = load_file(file)
            took, cpu_took = map(statistics.median, zip(*seconds[way], strict=True))
            results[way] = {
                "seconds": took,
                "cpu_seconds": cpu_took,
                "tokens_per_second": group * (prompt + reply) / took,
                "peak_gib": process.apply(_ask, ("peak_gib",)),
            }
    # A row at a time, for its memory.
    exact = float64_numbers(replace(task, way="padded", dtype="float64", padded_rows=1))
    for way in ways:
        results[way] |= errors(numbers[way], exact)
    results["apart"] = errors(numbers["shared"], numbers["padded"])
    results["speedup"] = results["padded"]["seconds"] / results["shared"]["seconds"]
    results["cpu_speedup"] = results["padded"]["cpu_seconds"] / results["shared"]["cpu_seconds"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="P:G:R")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        help="default: bfloat16, where the hardware is fast at it, and float32",
    )
    parser.add_argument(
        "--padded-rows",
        type=int,
        default=0,
        help="full copies in one forward pass; 0: all of a group (P=1200 takes some 12 GiB in "
        "float32)",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="after one that warms up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.dtypes = args.dtypes or list(dict.fromkeys([resolve_dtype("auto", on_gpu), "float32"]))

    progress = Console(stderr=True)
    rows = []
    for shape in args.shapes:
        for dtype in args.dtypes:
            rows.append(compare(args, shape, dtype))
            progress.print_json(json.dumps(rows[-1]), indent=None)
    float32 = [row["shared"] for row in rows if row["dtype"] == "float32"]
    summary = {
        "speedup": rows[0]["speedup"],  # of the first shape and dtype asked for
        **{
            f"{error}_fp32": max((found[error] for found in float32), default=None)
            for error in ("max_logprob_error", "relative_gradient_error")
        },
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        "torch": torch.__version__,
        "runs": rows,
    }
    if args.json:
        print(json.dumps(summary))
        return
    table = Table(title="forward + backward of one group")
    for column in ("P:G:R", "dtype", "padded s", "shared s", "speedup", "padded GiB", "shared GiB"):
        table.add_column(column, justify="right")
    for row in rows:
        padded, shared = row["padded"], row["shared"]
        table.add_row(
            row["shape"],
            row["dtype"],
            f"{padded['seconds']:.2f}",
            f"{shared['seconds']:.2f}",
            f"{row['speedup']:.2f}",
            f"{padded['peak_gib']:.2f}",
            f"{shared['peak_gib']:.2f}",
        )
    Console().print(table)
    Console().print(
        f"shared, float32: log-probs are off by {summary['max_logprob_error_fp32']}, gradients by "
        f"{summary['relative_gradient_error_fp32']} of their norm"
    )


if __name__ == "__main__":
    main()

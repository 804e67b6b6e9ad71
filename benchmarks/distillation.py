"""A small model, served by vLLM on loopback, as the teacher of `starec distill`: what screening and
rethink make of its traces.

A second call goes on where the first was stopped, in the same folder.

    python benchmarks/distillation.py --data data/ml-1m-5 --out runs/small-teacher --json
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from starec_ray.models.resolve import resolve_dtype, resolve_model
from starec_ray.training.traces import KEPT

SCORED = ["rank", "reflect"]


@contextmanager
def served(args: argparse.Namespace) -> Iterator[str]:
    """The base URL of vLLM's own OpenAI server with the model; its log lies in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; that command itself looks for the CUDA package's metadata.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", resolve_model(args.model), "--served-model-name", args.model]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", resolve_dtype("auto", on_gpu=args.gpu), "--max-num-seqs", "16"]
    command += ["--max-model-len", "1536"]
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1"}
    if not args.gpu:
        # Blocks of 32: a rethink shares all but the end of its prompt with the first question.
        command += ["--enforce-eager", "--block-size", "32"]
        # A prompt computed in chunks ends the engine there when its request has a seed.
        command += ["--max-num-batched-tokens", str(16 * 1536)]
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment["OMP_NUM_THREADS"] = str(args.threads)
    with open(args.out / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + args.start_timeout
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server didn't start: see {args.out / 'server.log'}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def distil(args: argparse.Namespace, url: str) -> list[str]:
    """Runs the command; returns what it was called with."""
    options = ["distill", "--data", str(args.data), "--out", str(args.out)]
    options += ["--teacher", args.model, "--base-url", url, "--guided"]
    options += ["--users", str(args.users), "--reply-format", args.reply_format]
    options += ["--min-score", str(args.min_score), "--rethinks", str(args.rethinks)]
    options += ["--temperature", "0.7", "--history-shown", "4", "--max-tokens", "160"]
    options += ["--concurrency", "16", "--timeout", "3600", "--seed", str(args.seed)]
    program = "from starec_ray.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *options], check=True)
    return options


def figures(traces: pa.Table) -> dict[str, dict[str, Any]]:
    """For each scored kind, for both, and step: answers, mean NDCG with its standard error."""
    found: dict[str, dict[str, Any]] = {}
    scored = traces.filter(pc.is_valid(traces["score"]))
    for kind, kinds in {"rank": ["rank"], "reflect": ["reflect"], "both": SCORED}.items():
        table = scored.filter(pc.is_in(scored["kind"], pa.array(kinds)))
        first, kept = pc.equal(table["attempt"], 0), pc.equal(table["verdict"], KEPT)
        steps = {
            "asked": first,
            "kept at the first answer": pc.and_(first, kept),
            "kept by a rethink": pc.and_(pc.invert(first), kept),
            "kept after rethink": kept,
        }
        for step, chosen in steps.items():
            scores = table.filter(chosen)["score"].to_numpy()
            n = len(scores)
            found.setdefault(kind, {})[step] = {
                "answers": n,
                "ndcg": float(scores.mean()) if n else None,
                "standard_error": float(scores.std(ddof=1) / n**0.5) if n > 1 else None,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="A small served model as a teacher.")
    parser.add_argument("--data", type=Path, required=True, help="a prepared data folder")
    parser.add_argument("--out", type=Path, required=True, help="as that of starec distill")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--reply-format", default="titles")
    parser.add_argument("--min-score", type=float, default=0.5)
    parser.add_argument("--rethinks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of the server, without a GPU")
    parser.add_argument("--gpu", action="store_true", help="serve it on the first GPU")
    parser.add_argument("--start-timeout", type=float, default=600.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with served(args) as url:
        options = distil(args, url)
    traces = pq.read_table(args.out / "traces.parquet")
    report = json.loads((args.out / "report.json").read_text())
    result = {
        "starec": " ".join(options),
        "seconds_of_this_call": time.perf_counter() - start,
        "figures": figures(traces),
        **{name: report[name] for name in ("traces", "kept", "verdicts", "tokens", "this_call")},
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    table = Table(title=f"{report['traces']} answers, {report['kept']} kept")
    for heading in ("kind", "step", "answers", "NDCG ×100", "± standard error"):
        table.add_column(heading)
    for kind, steps in result["figures"].items():
        for step, found in steps.items():
            numbers = [found["ndcg"], found["standard_error"]]
            cells = ["-" if number is None else f"{100 * number:.1f}" for number in numbers]
            table.add_row(kind, step, str(found["answers"]), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

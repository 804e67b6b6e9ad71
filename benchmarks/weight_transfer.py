"""Weight transfer from the learners to 1, 2 and 4 env runners: seconds by part, by engine.

    python benchmarks/weight_transfer.py --data runs/demo-data --json

"gather" takes the weights out of the learners, "put" makes one object of them, "join" is the wait
for the group, "load" the slowest runner's loading; "total" is what training waits for. Memory is
that of learner 0 and the driver, before and after the repeats.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from starec_ray.algorithm import STARec
from starec_ray.cluster.connection import start_ray
from starec_ray.config import STARecConfig


def measure(args: argparse.Namespace, engine: str, runners: int) -> dict[str, Any]:
    """Medians over the repeats; the first transfer, which makes groups and maps memory, apart."""
    config = (
        STARecConfig()
        .data(path=args.data)
        .model(name=args.model, max_model_len=1024)
        .env_runners(
            num_env_runners=runners,
            num_cpus_per_env_runner=1,
            num_gpus_per_env_runner=args.gpus,
            weight_transfer=engine,
            max_num_seqs=8,
        )
        .learners(
            num_learners=args.learners, num_cpus_per_learner=1, num_gpus_per_learner=args.gpus
        )
        .resolve()
    )
    algo = config.build_algo()
    assert isinstance(algo, STARec)
    try:
        parts: list[dict[str, float]] = []
        memory = [_memory(algo)]
        for _ in range(args.repeats + 1):
            start = time.perf_counter()
            version = algo.runners.weight_version + 1
            seconds = algo.runners.load_weights(algo.transfer.publish(algo.learners, version))
            parts.append({**seconds, "total": time.perf_counter() - start})
            memory.append(_memory(algo))
        return {
            "engine": engine,
            "runners": runners,
            "first_total": parts[0]["total"],
            **{part: statistics.median(p[part] for p in parts[1:]) for part in parts[1]},
            "learner_gib": [memory[1]["learner_0"], memory[-1]["learner_0"]],
            "driver_gib": [memory[1]["driver"], memory[-1]["driver"]],
        }
    finally:
        algo.stop()


def _memory(algo: STARec) -> dict[str, float]:
    return {
        key.removeprefix("memory_bytes/"): size / 2**30
        for key, size in algo.memory().items()
        if key.startswith("memory_bytes/")
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared data folder")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--engines", nargs="+", default=["object_store", "gloo"])
    parser.add_argument("--runners", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--learners", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0, help="of each learner and runner")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()

    start_ray({"num_cpus": 16})
    runs = [measure(args, engine, n) for n in args.runners for engine in args.engines]
    if args.json:
        print(json.dumps({"model": args.model, "learners": args.learners, "runs": runs}))
        return
    parts = ("gather", "put", "join", "load", "total", "first_total")
    table = Table(title=f"{args.model}, {args.learners} learners; seconds")
    for column in ("engine", "runners", *parts):
        table.add_column(column, justify="right")
    for run in runs:
        cells = [f"{run[part]:.2f}" if part in run else "" for part in parts]
        table.add_row(run["engine"], str(run["runners"]), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

"""What it takes to start a run: seconds until all actors are up, the processor's seconds and the
resident memory of each.

    python -m benchmarks.startup --json

With the tiny model, so that it is the price of the libraries and not of weights. "import" is the
driver's, of all that reads a recipe and builds an algorithm; "build" is `build_algo`,
until the reward actors answer too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from rich.console import Console
from rich.table import Table

from benchmarks.chaos import TITLES, tiny_recipe
from starec_ray.cluster.connection import start_ray
from starec_ray.config.recipe import load_recipe


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def started() -> dict[str, dict[str, float]]:
    """Kind of actor → {"actors", "cpu_seconds", "memory_bytes"}, the means of those that are up."""
    found: dict[str, list[psutil.Process]] = {kind: [] for kind in TITLES}
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        for kind, begins in TITLES.items():
            if title.startswith(begins):
                found[kind].append(process)
    return {
        kind: {
            "actors": len(those),
            "cpu_seconds": sum(map(cpu_seconds, those)) / len(those),
            "memory_bytes": sum(p.memory_info().rss for p in those) / len(those),
        }
        for kind, those in found.items()
    }


def measure(folder: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    reads = "import starec_ray.config.recipe, starec_ray.algorithm"
    subprocess.run([sys.executable, "-c", reads], check=True, capture_output=True)
    imported = time.perf_counter() - begin
    recipe = load_recipe(tiny_recipe(folder))
    start_ray(recipe.run.ray)
    begin = time.perf_counter()
    algo = recipe.config.resolve().build_algo()
    try:
        ray.get([actor.ping.remote() for actor in algo.reward_group.actors], timeout=60)
        seconds = time.perf_counter() - begin
        return {"import": imported, "build": seconds, "actors": started()}
    finally:
        algo.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    if args.json:
        print(json.dumps(found))
        return
    table = Table("", "actors", "processor, s", "memory, MiB", title="a start, each")
    for kind, each in found["actors"].items():
        memory = f"{each['memory_bytes'] / 2**20:.0f}"
        table.add_row(kind, f"{each['actors']:.0f}", f"{each['cpu_seconds']:.1f}", memory)
    console = Console()
    console.print(table)
    console.print(f"driver's imports {found['import']:.1f} s, build_algo {found['build']:.1f} s")


if __name__ == "__main__":
    main()

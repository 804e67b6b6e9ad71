"""Does any actor's resident memory grow from iteration to iteration?

    python -m benchmarks.memory_growth --iterations 200 --json    # trains the tiny model first
    python -m benchmarks.memory_growth --run runs/demo --json     # looks at a run that there is

"growth" is the median of an actor's last ten iterations over that of the ten after the warm-up,
less one. Actors that were lost on the way (`failures.jsonl`) say nothing about it: they are listed
apart.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.chaos import tiny_recipe
from starec_ray.config.recipe import load_recipe
from starec_ray.jobs.train import train
from starec_ray.run_dir import RunDir

PREFIX = "memory_bytes/"
WINDOW = 10  # iterations


def growth(run: RunDir, warm_up: int) -> dict[str, dict[str, float]]:
    """Actor → {"before": bytes, "after": bytes, "growth": share}, of stage two after the warm-up,
    of the actors that lived through it.

    Raises:
        SystemExit: if the run has too few iterations.
    """
    lines = [line for line in run.read_metrics() if line["stage"] == "reinforce"][warm_up:]
    if len(lines) < 2 * WINDOW:
        raise SystemExit(
            f"{run.path} has {len(lines)} iterations after the warm-up: {2 * WINDOW} are needed."
        )
    found = {}
    lost = lost_actors(run)
    for key in sorted({key for line in lines for key in line if key.startswith(PREFIX)}):
        if key.removeprefix(PREFIX) in lost:
            continue
        sizes = [line[key] for line in lines if key in line]
        before = statistics.median(sizes[:WINDOW])
        after = statistics.median(sizes[-WINDOW:])
        found[key.removeprefix(PREFIX)] = {
            "before": before,
            "after": after,
            "growth": after / before - 1,
        }
    return found


def lost_actors(run: RunDir) -> list[str]:
    """Those that were lost at some time: "env_runner_1", …"""
    return sorted({f"{event['kind']}_{event['number']}" for event in run.read_failures()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a run's folder, instead of training")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20, help="iterations left out")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()
    if not args.run and args.iterations < args.warm_up + 2 * WINDOW:
        parser.error(f"--iterations must be {args.warm_up + 2 * WINDOW} or more: see --warm-up")

    console = Console(stderr=args.json)
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDir(args.run or Path(scratch) / "run", create=not args.run)
        if not args.run:
            overrides = [f"run.iterations={args.iterations}", "run.checkpoint_every=0"]
            train(load_recipe(tiny_recipe(Path(scratch)), overrides), run.path, console)
        actors = growth(run, args.warm_up)
        iterations, lost = len(run.read_metrics()), lost_actors(run)
    worst = max(actors.values(), key=lambda actor: actor["growth"])["growth"]
    if args.json:
        figures = {"iterations": iterations, "worst_growth": worst}
        print(json.dumps(figures | {"actors": actors, "lost": lost}))
        return
    table = Table(
        "actor", "after the warm-up", "at the end", "growth", title=f"{iterations} iterations"
    )
    for name, actor in actors.items():
        sizes = [f"{actor[when] / 2**20:.0f} MiB" for when in ("before", "after")]
        table.add_row(name, *sizes, f"{actor['growth']:+.1%}")
    console.print(table)


if __name__ == "__main__":
    main()

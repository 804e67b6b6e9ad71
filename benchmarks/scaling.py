"""What an iteration costs against group size, prompt length, users and env runners.

    starec data prepare synthetic --out runs/demo-data --negatives 7
    python benchmarks/scaling.py --data runs/demo-data --plot scaling.png --json

From one base setting each of the four is varied alone. "exponent" is the slope of the seconds over
the work (tokens that the learner takes in, tokens that are sampled) in logarithms: 1 is a cost that
grows as the work does, less is a fixed cost that larger iterations share, more is a cost that grows
faster. The first iteration of each setting warms up; medians over the others.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from starec_ray.algorithm import STARec
from starec_ray.cluster.connection import start_ray
from starec_ray.config import STARecConfig
from starec_ray.plotting import save_png

BASE = {"answers": 4, "history": 2, "users": 8, "env runners": 1}
AXES: dict[str, list[int]] = {
    "answers": [2, 4, 8, 16],
    "history": [0, 2, 8, 16],  # items shown: the length of the prompt
    "users": [4, 8, 16, 32],
    "env runners": [1, 2],
}
PHASES = {"sampling": "seconds/wait_for_rollouts", "update": "seconds/update"}
PHASES |= {"weights": "seconds/weight_transfer"}
WORK = {"sampling": "sampled_tokens", "update": "learned_tokens"}


def measure(args: argparse.Namespace, setting: dict[str, int]) -> dict[str, Any]:
    """Seconds of each phase of an iteration, and the work in it."""
    runners = setting["env runners"]
    config = (
        STARecConfig()
        .data(path=args.data)
        .model(
            name=args.model,
            dtype=args.dtype,
            think_before_ranking=False,
            constrained_decoding=True,
            item_attributes=["likeness", "popularity", "tags"],
            history_shown=setting["history"],
            max_model_len=2048,
            max_rank_tokens=128,
        )
        .anchor(anchor_epochs=0)
        .rewards(reward_shape="ndcg")
        .training(
            lr=1e-6,
            cases_per_iteration=setting["users"],
            group_size=setting["answers"],
            reflect_share=0.0,
        )
        # The runners share the threads, as they would on machines of their own size.
        .env_runners(
            num_env_runners=runners,
            num_cpus_per_env_runner=max(1, args.threads // runners),
            num_gpus_per_env_runner=args.gpus,
            max_num_seqs=128,
            kv_cache_gib=1,
        )
        .learners(
            num_learners=1,
            num_cpus_per_learner=args.threads,
            num_gpus_per_learner=args.gpus,
            micro_batch_tokens=args.micro_batch_tokens,
        )
        .debugging(seed=args.seed)
        .resolve()
    )
    algo = config.build_algo()
    assert isinstance(algo, STARec)
    try:
        reports = []
        for _ in range(1 + args.repeats):
            algo.train()
            reports.append(algo.report)
    finally:
        algo.stop()
    last = reports[1:]
    rollouts = setting["users"] * setting["answers"]
    return {
        **setting,
        "prompt_tokens": statistics.mean(r["rank/prompt_tokens"] for r in last),
        "sampled_tokens": rollouts * statistics.mean(r["rank/reply_tokens"] for r in last),
        "learned_tokens": statistics.mean(r["tokens"] for r in last),
        "seconds": {
            phase: statistics.median(r[key] for r in last) for phase, key in PHASES.items()
        },
    }


def exponents(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Phase → slope of log seconds over log work; none where the work is the same throughout."""
    found = {}
    for phase, work in WORK.items():
        amounts = np.log([run[work] for run in runs])
        if np.ptp(amounts) > 0.1:
            seconds = np.log([run["seconds"][phase] for run in runs])
            found[phase] = float(np.polyfit(amounts, seconds, 1)[0])
    return found


def plot(curves: dict[str, Any], path: Path) -> None:
    """A panel for each of the four: seconds of each phase."""
    figure = Figure(figsize=(4 * len(curves), 3.4), layout="constrained")
    axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for panel, (axis, curve) in zip(axes, curves.items(), strict=True):
        across = "prompt_tokens" if axis == "history" else axis
        values = [run[across] for run in curve["runs"]]
        for phase in PHASES:
            panel.plot(values, [r["seconds"][phase] for r in curve["runs"]], "o-", label=phase)
        panel.set_xlabel("prompt tokens" if axis == "history" else axis)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("seconds of an iteration")
    axes[0].legend(frameon=False)
    save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared data folder")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 or float32, by hardware")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0, help="of each learner and runner")
    parser.add_argument("--micro-batch-tokens", type=int, default=1216)
    parser.add_argument("--repeats", type=int, default=2, help="after one that warms up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="write the curves into this PNG")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()

    console = Console(stderr=args.json)
    start_ray({"num_cpus": 16})
    measured: dict[tuple[int, ...], dict[str, Any]] = {}  # the base is on every axis
    curves: dict[str, Any] = {}
    settings = [(axis, {**BASE, axis: value}) for axis in args.axes for value in AXES[axis]]
    for axis, setting in track(settings, "settings", console=console):
        key = tuple(setting.values())
        if key not in measured:
            measured[key] = measure(args, setting)
        curves.setdefault(axis, {"runs": []})["runs"].append(measured[key])
    for curve in curves.values():
        curve["exponents"] = exponents(curve["runs"])
    if args.plot:
        plot(curves, args.plot)
    if args.json:
        print(json.dumps({"model": args.model, "base": BASE, "curves": curves}))
        return
    for axis, curve in curves.items():
        slopes = ", ".join(f"{phase} {e:.2f}" for phase, e in curve["exponents"].items())
        table = Table(title=f"{axis} (exponents: {slopes or 'the same work'})")
        for column in (axis, "prompt tokens", "sampled", "learned", *PHASES):
            table.add_column(column, justify="right")
        for run in curve["runs"]:
            cells = [f"{run[k]:,.0f}" for k in ("prompt_tokens", *WORK.values())]
            seconds = [f"{run['seconds'][phase]:.2f}" for phase in PHASES]
            table.add_row(str(run[axis]), *cells, *seconds)
        console.print(table)


if __name__ == "__main__":
    main()

"""A run whose actors and driver are killed at random moments: does it finish, and is anything lost?

    python -m benchmarks.chaos --kills 24 --json

Env runners, reward actors, learners and the driver (which is started again with --resume) are
ended by SIGKILL, one after the other in a seeded order, each at a seeded moment after the last
one's recovery. The last kill is the driver's; the run is then resumed to its end.

"seconds_to_recover", from the kill: a reward actor until its process answers again; an env runner
until it holds the current weights; the learners until the new group has a checkpoint's state; the
driver until the resumed run has it. "rollouts_lost" were asked for and never came back;
"rollouts_trained_twice" is what the learners count beside their weights beyond the rollouts of the
iterations that stand; "iterations_repeated" were done again from a checkpoint.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from rich.console import Console
from rich.table import Table

from starec_ray.data.prepare import prepare
from starec_ray.run_dir import RunDir

DRIVER = "driver"
TITLES = {
    "env_runner": "ray::VLLMEnvRunner",
    "reward_actor": "ray::RewardActor",
    "learner": "ray::_WrappedExecutable",  # Ray Train's wrapper of the learner's class
}
KINDS = ("env_runner", "reward_actor", "learner", DRIVER)
ENDLESS = 1_000_000  # iterations until the last kill
POLL_S = 0.05
TRAINED = ("rank", "reflect")  # kinds of rollout
AT_WORK = re.compile(r"going on after iteration (\d+)")


class ChaosError(Exception):
    """The run under test gave up, or didn't recover in time; shows the end of its log."""


class Victim:
    """`starec train` in a process of its own, with the Ray that it starts.

    Args:
        recipe: a YAML file.
        run: its folder.
        limit_s: deadline of any one wait, in seconds.
    """

    def __init__(self, recipe: Path, run: RunDir, limit_s: float) -> None:
        self.run = run
        self._recipe = recipe
        self._limit_s = limit_s
        self._log = run.path.with_name(f"{run.path.name}.log")
        self._process: subprocess.Popen | None = None
        self._began = 0.0

    def start(self, *options: str) -> None:
        command = [sys.executable, "-c", "from starec_ray.cli import main; main()", "train"]
        environment = {**os.environ, "COLUMNS": "300", "RAY_ADDRESS": ""}
        self._began = time.time()
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                [*command, str(self._recipe), "--run-dir", str(self.run.path), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def wait_for(self, what: str, done: Callable[[], bool]) -> None:
        """
        Raises:
            ChaosError: it didn't come true in time, or the process ended before.
        """
        deadline = time.monotonic() + self._limit_s
        while not done():
            if self._process is None or self._process.poll() is not None:
                raise ChaosError(
                    f"the run ended while it was waited for {what}:\n{self.log[-3000:]}"
                )
            if time.monotonic() > deadline:
                raise ChaosError(
                    f"{what} wasn't there within {self._limit_s} s:\n{self.log[-3000:]}"
                )
            time.sleep(POLL_S)

    def wait_until_at_work(self) -> None:
        """Until the process has its checkpoint's state, or has done an iteration."""
        metrics = self.run.metrics
        self.wait_for(
            "an iteration",
            lambda: (
                metrics.exists()
                and metrics.stat().st_mtime > self._began
                and bool(self.run.rollout_iterations())
            ),
        )

    def end(self) -> int:
        """Waits for the process; its exit status."""
        assert self._process
        return self._process.wait(self._limit_s)

    def processes(self, kind: str) -> list[psutil.Process]:
        """Those of a kind of actor that have started."""
        assert self._process
        if kind == DRIVER:
            return [psutil.Process(self._process.pid)]
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if title.startswith(TITLES[kind]) and "__init__" not in title:
                found.append(process)
        return found

    @property
    def iterations(self) -> int:
        """Of both stages, so far."""
        return max(self.run.rollout_iterations(), default=0)

    @property
    def reinforced(self) -> int:
        """Iterations of stage two, so far."""
        return max((line["iterations_done"] for line in self.run.read_metrics()), default=0)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def reap(self) -> None:
        """Ends what is left of it."""
        if self._process is not None and self._process.poll() is None:
            left = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            self._process.wait()
            for process in left:
                if process.is_running():
                    process.kill()

    def kill(self, kind: str, rng: np.random.Generator, iterations: int = ENDLESS) -> None:
        """Ends one process of a kind by SIGKILL and waits until the run has recovered; a resumed
        driver is to do so many iterations."""
        # A driver that has just come back may still be starting its actors.
        self.wait_for(f"a living {kind}", lambda: bool(self.processes(kind)))
        whole = self.processes(kind)
        doomed = whole[rng.integers(len(whole))]
        said, killed = len(self.log), time.time()
        doomed.kill()
        if kind == DRIVER:
            self.end()
            self.start(f"run.iterations={iterations}", "--resume")
        if kind in (DRIVER, "learner"):
            self.wait_for(f"a new {kind}", lambda: bool(AT_WORK.search(self.log[said:])))
            return
        self.wait_for(f"a new {kind}", lambda: self._is_whole(kind, len(whole), doomed))
        restarted = time.time()
        if kind == "env_runner":
            # Told as lost and back, or given the next weights before anyone missed it.
            self.wait_for(
                "a new env runner with weights",
                lambda: (
                    self._is_back(kind, killed) or self.run.metrics.stat().st_mtime > restarted + 1
                ),
            )

    def _is_whole(self, kind: str, number: int, doomed: psutil.Process) -> bool:
        return len([process for process in self.processes(kind) if process != doomed]) >= number

    def _is_back(self, kind: str, since: float) -> bool:
        return any(
            event["kind"] == kind and event["seconds"] is not None and event["time"] > since
            for event in self.run.read_failures()
        )


def chaos(
    recipe: Path,
    run_path: Path,
    kinds: Sequence[str],
    *,
    seed: int,
    pause_s: float,
    more_iterations: int,
    limit_s: float,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Trains by a recipe and kills, in a seeded order, one actor for each of `kinds`.

    Args:
        recipe: a YAML file; its run.iterations don't count.
        run_path: a new folder.
        kinds: of `KINDS`, one an actor to kill; a driver's kill is added at the end.
        pause_s: longest time from a recovery to the next kill, in seconds.
        more_iterations: after the last kill.
        limit_s: deadline of each recovery, and of the rest of the run after the last kill.

    Raises:
        ChaosError: if the run ended by itself, or didn't recover in time.
    """
    rng = np.random.default_rng(seed)
    began = time.monotonic()
    victim = Victim(recipe, RunDir(run_path), limit_s)
    seconds: dict[str, list[float]] = defaultdict(list)
    repeated = 0
    try:
        victim.start(f"run.iterations={ENDLESS}")
        for number, kind in enumerate([*rng.permutation(kinds), DRIVER], start=1):
            victim.wait_until_at_work()
            time.sleep(rng.uniform(0, pause_s))
            done, said, start = victim.iterations, len(victim.log), time.monotonic()
            last = number == len(kinds) + 1
            victim.kill(kind, rng, victim.reinforced + more_iterations if last else ENDLESS)
            seconds[kind].append(time.monotonic() - start)
            if back := AT_WORK.search(victim.log[said:]):
                repeated += max(0, done - int(back[1]))
            say(f"{number}: {kind} killed after iteration {done}: {seconds[kind][-1]:.1f} s")
        finished = victim.end() == 0
    finally:
        victim.reap()
    return {
        "kills": sum(map(len, seconds.values())),
        "kills_by_kind": {kind: len(each) for kind, each in seconds.items()},
        "finished": finished,
        **_accounts(victim.run),
        "iterations_repeated": repeated,
        "seconds_to_recover": {
            kind: {"median": statistics.median(each), "worst": max(each)}
            for kind, each in seconds.items()
        },
        "seconds": time.monotonic() - began,
    }


def _accounts(run: RunDir) -> dict[str, Any]:
    """What became of the rollouts, by the driver's ledger, the learners' count and the files."""
    lines = run.read_metrics()
    numbers = [line["iteration"] for line in lines]
    assert numbers == list(range(1, len(numbers) + 1)), "an iteration is missing, or there twice"
    standing = 0
    for iteration in run.rollout_iterations():
        rollouts = run.read_rollouts(iteration)
        assert set(rollouts["iteration"].to_pylist()) == {iteration}
        kept = rollouts.filter(pc.is_in(rollouts["kind"], pa.array(TRAINED)))
        keys = kept.select(["kind", "task", "rollout"]).to_pylist()
        standing += len({tuple(key.values()) for key in keys})
    last = lines[-1]
    return {
        "iterations": last["iterations_done"],
        "rollouts_asked": last["rollouts/asked"],
        "rollouts_asked_again": last["rollouts/asked_again"],
        "rollouts_lost": last["rollouts/asked"] - last["rollouts/finished"],
        "rollouts_trained": int(last["rollouts_trained"]),
        "rollouts_trained_twice": int(last["rollouts_trained"]) - standing,
    }


def tiny_recipe(folder: Path) -> Path:
    """A recipe of two env runners, two reward actors and two learners with the tiny model, for
    synthetic users."""
    prepare("synthetic", folder / "data", negatives=7)
    sections = {
        "data": {"path": str(folder / "data")},
        "model": {
            "name": "tiny",
            "dtype": "float32",
            "think_before_ranking": False,
            "constrained_decoding": True,
            "item_attributes": ["likeness", "popularity"],
            "history_shown": 2,
            "max_model_len": 1024,
            "max_rank_tokens": 96,
            "max_reflect_tokens": 24,
        },
        "anchor": {"num_traces": 64, "anchor_lr": 5e-3, "held_out_trace_share": 0.0},
        "rewards": {"reward_shape": "ndcg", "num_reward_actors": 2},
        "training": {"cases_per_iteration": 8, "group_size": 4, "reflect_share": 0.25},
        "env_runners": {"num_env_runners": 2, "kv_cache_gib": 0.25},
        "learners": {"num_learners": 2},
        "fault_tolerance": {"max_failures": 1000},
        "run": {
            "checkpoint_every": 2,
            "evaluate": False,
            "ray": {"num_cpus": 8, "object_store_memory": 200 * 2**20},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=24, help="1 or more, spread over the kinds")
    parser.add_argument("--pause", type=float, default=6.0, help="longest pause between, seconds")
    parser.add_argument("--iterations", type=int, default=5, help="after the last kill")
    parser.add_argument("--limit", type=float, default=300.0, help="of each wait, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the run and its log in this new folder")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()

    console = Console(stderr=args.json)
    kinds = [KINDS[number % len(KINDS)] for number in range(args.kills - 1)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        result = chaos(
            tiny_recipe(folder),
            folder / "run",
            kinds,
            seed=args.seed,
            pause_s=args.pause,
            more_iterations=args.iterations,
            limit_s=args.limit,
            say=console.print,
        )
    if args.json:
        print(json.dumps(result))
        return
    recovery = result.pop("seconds_to_recover")
    table = Table("", "kills", "median, s", "worst, s", title="recovery")
    for kind, each in recovery.items():
        kills = str(result["kills_by_kind"][kind])
        table.add_row(kind, kills, f"{each['median']:.1f}", f"{each['worst']:.1f}")
    console.print(table)
    console.print(result)


if __name__ == "__main__":
    main()

"""What a sweep found: a table of the trials, the best one's recipe and model, plots."""

import csv
import io
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from ray.tune import Result, ResultGrid
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from starec_ray.algorithm import MODEL
from starec_ray.cluster.actor_logs import HEADING
from starec_ray.config.fields import attribute_of
from starec_ray.config.recipe import Recipe, with_values
from starec_ray.config.run_settings import RunSettings
from starec_ray.errors import STARecError
from starec_ray.files import put_in_place, written_whole
from starec_ray.plotting import BLUE, GREY, plain_frame, save_png
from tune.space import Space
from tune.trial import metric_path

BEST_RECIPE = "best.yaml"
BEST_MODEL = "best_model"
TABLE = "trials.csv"
PLOT = "sweep.png"
STORAGE = "run.checkpoint_storage"  # of a run of its own: a sweep leaves it alone
WORDLESS = re.compile(r"[\w.]*(Error|Exception)")
OUT_OF_MEMORY = "running low on memory"  # in Ray's word on a worker that it killed


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        name: its place in the sweep, from 1.
        values: "section.key" → its value; where they change on the way (pbt), the one that its
            checkpoint was made with.
        scores: the metric after each iteration, fractions.
        iterations: GRPO iterations done.
        score: the metric of its checkpoint; None without one.
        checkpoint: the folder; None if it failed before there was one.
        cause: why it failed, one line; empty if it didn't.
    """

    name: str
    values: dict[str, Any]
    scores: list[float]
    iterations: int
    score: float | None
    checkpoint: Path | None
    cause: str


def read_trials(grid: ResultGrid, space: Space, run: RunSettings) -> list[Trial]:
    """The trials of a sweep, in the order in which they were drawn."""
    path, trials = metric_path(run.metric), []
    drawn = [_place(trial.experiment_tag) for trial in grid._experiment_analysis.trials]
    for number, place in enumerate(sorted(range(len(grid)), key=drawn.__getitem__)):
        result = grid[place]
        # A result has no settings of a trial that failed before it reported any.
        settings = grid._experiment_analysis.trials[place].config
        history = result.metrics_dataframe
        checkpoint, then = _best_checkpoint(result, path)
        if then and space.settings.scheduler == "pbt":
            settings = then["config"]
        trials.append(
            Trial(
                name=str(number + 1),
                values={key: settings[attribute_of(key)] for key in space.fields},
                scores=[]
                if history is None or path not in history
                else history[path].dropna().tolist(),
                iterations=int((result.metrics or {}).get("iterations_done", 0)),
                score=_at(then, path),
                checkpoint=checkpoint,
                cause=cause_of(result.error),
            )
        )
    return trials


def _place(experiment_tag: str) -> int:
    """Of a trial among those drawn: Tune remembers them in any order."""
    return int(experiment_tag.partition("_")[0])


def _best_checkpoint(result: Result, path: str) -> tuple[Path | None, dict[str, Any]]:
    """The best of those that are kept, and what its trial had reported when it was made."""
    kept = [
        (score, Path(checkpoint.path), metrics)
        for checkpoint, metrics in result.best_checkpoints or []
        if (score := _at(metrics, path)) is not None
    ]
    # Of equals the newest.
    _, checkpoint, then = max(reversed(kept), key=lambda one: one[0], default=(0.0, None, {}))
    return checkpoint, then


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial whose checkpoint is best.

    Raises:
        STARecError: if none has one.
    """
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        causes = "; ".join(sorted({trial.cause for trial in trials if trial.cause}))
        raise STARecError(f"no trial came to a checkpoint: {causes or 'none was finished'}")
    return max(scored, key=_rank)


def write_results(trials: Sequence[Trial], recipe: Recipe, out: Path, console: Console) -> None:
    """Shows the table and writes trials.csv, sweep.png, best.yaml and best_model/ into `out`."""
    run = recipe.run
    write_table(trials, run, out, console)
    best = best_of(trials)
    assert best.checkpoint
    with written_whole(out / BEST_RECIPE) as aside:
        alone = {STORAGE: ""} if run.checkpoint_storage else {}
        sections = with_values(recipe.sections, best.values | alone)
        aside.write_text(yaml.safe_dump(sections, sort_keys=False, allow_unicode=True))
    model, part = out / BEST_MODEL, out / f"{BEST_MODEL}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(best.checkpoint / MODEL, part)
    put_in_place(part, model)
    told = f"""best:       trial {best.name}, {run.metric} {100 * (best.score or 0):.1f}
recipe:     {out / BEST_RECIPE}
model:      {model}
checkpoint: {best.checkpoint}
plots:      {out / PLOT}"""
    console.print(told, markup=False, soft_wrap=True, highlight=False)


def write_table(trials: Sequence[Trial], run: RunSettings, out: Path, console: Console) -> None:
    """Shows the table and writes trials.csv and sweep.png into `out`; nothing without trials."""
    if not trials:
        return
    console.print(_table(trials, run))
    with written_whole(out / TABLE) as aside:
        aside.write_text(_csv(trials, run.metric), encoding="utf-8")
    _plot(trials, run.metric, out / PLOT)


def _table(trials: Sequence[Trial], run: RunSettings) -> Table:
    table = Table(title=f"{len(trials)} trials, {run.metric} ×100 on validation users")
    table.add_column("trial", justify="right")
    for key in trials[0].values:
        table.add_column(key, justify="right")
    for heading in (run.metric, "best seen", "iterations"):
        table.add_column(heading, justify="right")
    table.add_column("failed")
    for trial in sorted(trials, key=_rank, reverse=True):
        table.add_row(
            trial.name,
            *(escape(_short(value)) for value in trial.values.values()),
            _percent(trial.score),
            _percent(max(trial.scores, default=None)),
            str(trial.iterations),
            escape(trial.cause),
        )
    return table


def _rank(trial: Trial) -> float:
    """By which the best is highest, and those without a score lowest."""
    return -math.inf if trial.score is None else trial.score


def _csv(trials: Sequence[Trial], metric: str) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["trial", *trials[0].values, metric, "iterations", "checkpoint", "failed"])
    for t in trials:
        row = [t.name, *t.values.values(), t.score, t.iterations, t.checkpoint, t.cause]
        writer.writerow(row)
    return buffer.getvalue()


def _plot(trials: Sequence[Trial], metric: str, path: Path) -> None:
    """The metric over time by trial, and against each parameter."""
    keys = list(trials[0].values)
    figure = Figure(figsize=(4 * (1 + len(keys)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(keys), sharey=True, squeeze=False)[0]
    for trial in trials:
        steps = range(1, len(trial.scores) + 1)
        scores = [100 * s for s in trial.scores]
        axes[0].plot(steps, scores, marker="o", markersize=3, label=trial.name)
    axes[0].set_xlabel("iteration")
    axes[0].set_ylabel(f"{metric} ×100, validation users")
    axes[0].legend(title="trial", fontsize=7, frameon=False)
    for axis, key in zip(axes[1:], keys, strict=True):
        scored = [t for t in trials if t.score is not None]
        values = [t.values[key] for t in scored]
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            values = [_short(value) for value in values]
        elif values and min(values) > 0 and max(values) / min(values) > 20:
            axis.set_xscale("log")
        axis.scatter(values, [100 * (t.score or 0) for t in scored], color=BLUE, s=22)
        axis.set_xlabel(key)
    for axis in axes:
        plain_frame(axis)
        axis.grid(color=GREY, alpha=0.25, linewidth=0.6)
    save_png(figure, path)


def _at(metrics: dict[str, Any] | None, path: str) -> float | None:
    """A nested result's entry by its path; None if it isn't there."""
    value: Any = metrics or {}
    for part in path.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def cause_of(error: BaseException | None) -> str:
    """The last line of an error, before the end of an actor's log if it has one: above it stand
    the stacks of several processes. Ray's word on memory that ran out has its cause higher up; an
    error without a word of its own is told by the line of code that raised it."""
    said = str(error or "").split(HEADING)[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    of_memory = [line for line in lines if OUT_OF_MEMORY in line]
    last = (of_memory or lines or [""])[-1]
    if WORDLESS.fullmatch(last) and len(lines) > 1:
        last = f"{last} at {lines[-2]}"
    return last[:200]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

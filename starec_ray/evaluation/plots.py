"""Plots of an evaluation and of a training run, as PNG files."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from starec_ray.evaluation.results import SLOW
from starec_ray.plotting import BLUE, COLOURS, GREY, INK, plain_frame, save_png
from starec_ray.run_dir import flatten

SHOWN = ("ndcg@1", "ndcg@10")
# A panel each: the last parts of the names of the metrics that stand in it ("rank/reward").
TRAINING_PANELS = {"Reward": ("reward",), "NDCG ×100": ("ndcg@1", "ndcg@10")}


def plot_policies(summary: Mapping[str, Any], path: Path) -> None:
    """The policies side by side: NDCG@1 and NDCG@10 (×100) with their 95 % intervals.

    Args:
        summary: what `results.summarise` returns.
        path: the PNG to write.
    """
    results = summary["results"]
    names = [result["policy"] for result in results]
    height = 1.3 + 0.42 * len(names)
    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.subplots(1, len(SHOWN), sharey=True)
    for axis, metric in zip(axes, SHOWN, strict=True):
        for row, result in enumerate(results):
            mean = 100 * result[metric]
            low, high = (100 * bound for bound in result["ci95"][metric])
            colour = GREY if result["policy"] in ("random", "popularity") else BLUE
            alpha = 1.0 if result["slow_thinking"] else 0.75
            axis.barh(row, mean, color=colour, alpha=alpha, height=0.62)
            axis.plot([low, high], [row, row], color=INK, linewidth=1.4)
            axis.text(high + 1, row, f"{mean:.1f}", va="center", fontsize=9, color=INK)
        axis.set_title(f"{metric.upper()} ×100", fontsize=11)
        axis.set_xlim(0, min(112, 100 * max(r["ci95"][metric][1] for r in results) * 1.15 + 4))
        plain_frame(axis)
    axes[0].set_yticks(range(len(names)), [name.replace(SLOW, " + slow") for name in names])
    axes[0].invert_yaxis()
    figure.suptitle(f"{summary['cases']} cases, mean and 95 % interval", fontsize=10, color=INK)
    save_png(figure, path)


def plot_training(lines: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Reward and NDCG over the iterations of a run; False, and no file, if there are none.

    Args:
        lines: the lines of metrics.jsonl; NDCG as fractions.
        path: the PNG to write.
    """
    flat = [flatten(line) for line in lines]
    panels = {title: _series(flat, parts) for title, parts in TRAINING_PANELS.items()}
    panels = {title: series for title, series in panels.items() if series}
    if not panels:
        return False
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    for axis, (title, series) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        scale = 100 if "×100" in title else 1
        for (name, points), colour in zip(series.items(), cycle(COLOURS), strict=False):
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < 30 else None
            axis.plot(
                steps,
                [scale * value for value in values],
                label=name,
                color=colour,
                linewidth=1.5,
                marker=marker,
                markersize=3,
            )
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("iteration", fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8, frameon=False)
        plain_frame(axis)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    save_png(figure, path)
    return True


def _series(
    lines: Sequence[Mapping[str, Any]], parts: Sequence[str]
) -> dict[str, list[tuple[int, float]]]:
    """Metric name → its (iteration, value) points, of metrics whose name ends in one of `parts`."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name.rpartition("/")[2] in parts and isinstance(value, int | float):
                series.setdefault(name, []).append((line["iteration"], value))
    return series

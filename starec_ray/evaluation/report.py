"""An evaluation on the screen and on the disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from starec_ray.data.dataset import Dataset
from starec_ray.evaluation.plots import plot_policies
from starec_ray.evaluation.results import HEADLINE, PolicyResult, results_table, summarise
from starec_ray.run_dir import written_whole

BASELINE = "popularity"
_COLUMNS = {"ndcg@1": "N@1", "ndcg@5": "N@5", HEADLINE: "N@10", "ndcg@20": "N@20", "mrr": "MRR"}


def write_evaluation(
    folder: Path, results: Sequence[PolicyResult], dataset: Dataset, *, seed: int = 0
) -> dict[str, Any]:
    """Write evaluation.json, evaluation_cases.parquet and policies.png; returns the summary.

    Everything in the summary can be computed again from evaluation_cases.parquet (see
    `results.read_results`) and the data folder.
    """
    activity = {
        case_id: dataset.case(case_id).activity for result in results for case_id in result.case_ids
    }
    summary = summarise(results, activity, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "evaluation_cases.parquet") as aside:
        pq.write_table(results_table(results), aside, compression="zstd")
    with written_whole(folder / "evaluation.json") as aside:
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        aside.write_text(text + "\n", encoding="utf-8")
    plot_policies(summary, folder / "policies.png")
    return summary


def print_evaluation(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """The policies as tables: metrics ×100 with intervals, then NDCG@10 by activity."""
    console = console or Console()
    console.print(_policies_table(summary))
    console.print(_activity_table(summary))


def _policies_table(summary: Mapping[str, Any]) -> Table:
    against = {
        difference["a"]: difference
        for difference in summary["paired_differences"]
        if difference["b"] == BASELINE
    }
    table = Table(
        title=f"{summary['cases']} cases, ×100, 95 % intervals in brackets",
        caption=f"vs {BASELINE}: paired difference of N@10",
    )
    table.add_column("policy")
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    table.add_column("malformed", justify="right")
    table.add_column(f"vs {BASELINE}", justify="right")
    for result in summary["results"]:
        cells = [f"{100 * result[name]:.1f}" for name in _COLUMNS]
        at = list(_COLUMNS).index(HEADLINE)
        cells[at] += " " + _interval(result["ci95"][HEADLINE])
        difference = against.get(result["policy"])
        table.add_row(
            result["policy"],
            *cells,
            f"{100 * result['malformed_rate']:.1f} %",
            _difference(difference) if difference else "",
        )
    return table


def _activity_table(summary: Mapping[str, Any]) -> Table:
    results = summary["results"]
    table = Table(title="N@10 ×100 by the user's number of interactions")
    table.add_column("policy")
    for group in results[0]["by_activity"]:
        table.add_column(f"{group['activity']}\n({group['cases']} cases)", justify="right")
    for result in results:
        table.add_row(
            result["policy"], *(f"{100 * group[HEADLINE]:.1f}" for group in result["by_activity"])
        )
    return table


def _interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"({100 * low:.1f}–{100 * high:.1f})"


def _difference(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci95"]
    p = difference["p"]
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{100 * difference[HEADLINE]:+.1f} ({100 * low:+.1f} … {100 * high:+.1f}), {shown}"

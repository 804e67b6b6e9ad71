"""An evaluation on the screen and on the disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from starec_ray.data.dataset import Dataset
from starec_ray.evaluation.plots import plot_policies
from starec_ray.evaluation.results import HEADLINE, PolicyResult, results_table, summarise
from starec_ray.files import failing_for, written_whole
from starec_ray.run_dir import EVALUATION

BASELINE = "popularity"
OUT_REMEDY = "Make room, or have it written elsewhere: starec evaluate … --out."
_COLUMNS = {
    "ndcg@1": "N@1",
    "ndcg@5": "N@5",
    HEADLINE: "N@10",
    "ndcg@20": "N@20",
    "hr@10": "HR@10",
    "mrr": "MRR",
}


def describe_evaluation(
    results: Sequence[PolicyResult],
    dataset: Dataset,
    *,
    data_path: str,
    split: str,
    seed: int = 0,
    trained_users: int = 0,
) -> dict[str, Any]:
    """The summary, which evaluation.json holds.

    `data_path` and `split` say where the cases are from, `trained_users` of how many the models
    may have learned; the summary has it where there are any.
    """
    activity = {
        case_id: dataset.case(case_id).activity for result in results for case_id in result.case_ids
    }
    where: dict[str, Any] = {"data": data_path, "split": split, "seed": seed}
    if trained_users:
        where["trained_users"] = trained_users
    return where | summarise(results, activity, seed=seed)


def write_evaluation(
    folder: Path, results: Sequence[PolicyResult], summary: Mapping[str, Any]
) -> None:
    """Write evaluation.json, evaluation_cases.parquet and policies.png.

    Everything in the summary can be computed again from evaluation_cases.parquet (see
    `results.read_results`) and the data folder.

    Raises:
        StorageError: the folder can't be written.
    """
    with failing_for(folder, OUT_REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / "evaluation_cases.parquet") as aside:
            pq.write_table(results_table(results), aside, compression="zstd")
        with written_whole(folder / EVALUATION) as aside:
            text = json.dumps(summary, indent=2, ensure_ascii=False)
            aside.write_text(text + "\n", encoding="utf-8")
        plot_policies(summary, folder / "policies.png")


def print_evaluation(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Three tables, ×100: the policies' metrics, what they gain on popularity, by activity."""
    console = console or Console()
    console.print(_policies_table(summary))
    differences = [d for d in summary["paired_differences"] if d["b"] == BASELINE]
    if differences:
        console.print(_differences_table(differences))
    console.print(_activity_table(summary))


def _table(title: str) -> Table:
    """Policies by row, so narrow that all their metrics fit into 80 characters."""
    table = Table(
        title=f"\n{title}",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("policy", no_wrap=True)
    return table


def _policies_table(summary: Mapping[str, Any]) -> Table:
    title = f"{summary['cases']} {summary['split']} users, ×100, N@10 with its 95 % interval"
    table = _table(title)
    for heading in (*_COLUMNS.values(), "malformed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in summary["results"]:
        cells = {name: f"{100 * result[name]:.1f}" for name in _COLUMNS}
        low, high = result["ci95"][HEADLINE]
        cells[HEADLINE] += f" ({100 * low:.1f}–{100 * high:.1f})"
        malformed = f"{100 * result['malformed_rate']:.1f} %"
        table.add_row(result["policy"], *cells.values(), malformed)
    reflections = [
        f"{result['policy']} {100 * result['malformed_reflection_rate']:.1f} %"
        for result in summary["results"]
        if "malformed_reflection_rate" in result
    ]
    if reflections:
        table.caption = f"malformed reflections: {', '.join(reflections)}"
        table.caption_justify = "left"
    return table


def _differences_table(differences: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(f"N@10 ×100 less that of {BASELINE}")
    for heading in ("difference", "95 % interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for difference in differences:
        low, high = difference["ci95"]
        p = difference["p"]
        table.add_row(
            difference["a"],
            f"{100 * difference[HEADLINE]:+.1f}",
            f"{100 * low:+.1f} … {100 * high:+.1f}",
            "< 0.001" if p < 0.001 else f"{p:.3f}",
        )
    return table


def _activity_table(summary: Mapping[str, Any]) -> Table:
    results = summary["results"]
    table = _table("N@10 ×100 by the user's number of interactions")
    for group in results[0]["by_activity"]:
        table.add_column(f"{group['activity']}\n({group['cases']} cases)", justify="right")
    for result in results:
        table.add_row(
            result["policy"], *(f"{100 * group[HEADLINE]:.1f}" for group in result["by_activity"])
        )
    return table

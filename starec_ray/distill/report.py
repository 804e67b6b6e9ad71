"""What a distillation kept and what it cost: figures, tables on the screen, a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from starec_ray.files import written_whole
from starec_ray.plotting import BLUE, GREY, plain_frame, save_png
from starec_ray.training.traces import KEPT

SCORED = {"rank": "rankings", "reflect": "reflections, by their follow-up ranking"}


def summarise(traces: pa.Table, cases: Sequence[str]) -> dict[str, Any]:
    """Counts and means of a `schemas.DISTILLED` table.

    Args:
        cases: the users' first ones; the later ones are ranked as follow-ups alone.

    Returns:
        {"traces": n, "kept": n, "tokens": {"prompt": n, "reply": n},
        "verdicts": {kind: {verdict: n}}, "ndcg": {kind: {"asked": mean of all first answers
        (a malformed one's is 0), "screened": of those kept, "rethought": of all kept, or None}}}.
        Follow-up rankings are among the verdicts of "rank"; their NDCG is that of "reflect".
    """
    verdicts: dict[str, dict[str, int]] = {}
    for row in traces.group_by(["kind", "verdict"]).aggregate([([], "count_all")]).to_pylist():
        verdicts.setdefault(row["kind"], {})[row["verdict"]] = row["count_all"]
    return {
        "traces": len(traces),
        "kept": sum(counts.get(KEPT, 0) for counts in verdicts.values()),
        "tokens": {
            part: pc.sum(traces[f"{part}_tokens"]).as_py() or 0 for part in ("prompt", "reply")
        },
        "verdicts": {
            kind: dict(sorted(counts.items(), key=lambda entry: -entry[1]))
            for kind, counts in sorted(verdicts.items())
        },
        "ndcg": {kind: _ndcg(traces, kind, cases) for kind in SCORED if kind in verdicts},
    }


def _ndcg(traces: pa.Table, kind: str, cases: Sequence[str]) -> dict[str, float | None]:
    scored = traces.filter(pc.and_(pc.equal(traces["kind"], kind), pc.is_valid(traces["score"])))
    if kind == "rank":
        scored = scored.filter(pc.is_in(scored["case_id"], pa.array(cases, pa.string())))
    scores = scored["score"].to_numpy()
    first = scored["attempt"].to_numpy() == 0
    kept = np.asarray(scored["verdict"].to_pylist()) == KEPT
    chosen = {"asked": first, "screened": first & kept, "rethought": kept}
    return {name: _mean(scores[mask.astype(bool)]) for name, mask in chosen.items()}


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def write_distillation(
    folder: Path,
    traces: pa.Table,
    cases: Sequence[str],
    asked: Mapping[str, Any],
    unanswered: Mapping[str, int],
) -> dict[str, Any]:
    """Writes traces.parquet, report.json and report.png into `folder`, each whole.

    Args:
        cases: as `summarise` takes them.
        asked: what the teacher was asked in this process, for the report.
        unanswered: step of the loop → questions that were left open.
    """
    summary = summarise(traces, cases) | {"unanswered": dict(unanswered), "this_call": dict(asked)}
    with written_whole(folder / "traces.parquet") as aside:
        pq.write_table(traces, aside, compression="zstd")
    with written_whole(folder / "report.json") as aside:
        aside.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    _plot(traces, folder / "report.png")
    return summary


def print_distillation(summary: Mapping[str, Any], console: Console) -> None:
    """Kept and dropped by reason, then what screening and rethinking did to the NDCG."""
    table = Table(title=f"{summary['traces']} answers, {summary['kept']} kept")
    for heading in ("kind", "verdict", "answers"):
        table.add_column(heading, justify="right" if heading == "answers" else "left")
    for kind, counts in summary["verdicts"].items():
        for number, (verdict, count) in enumerate(counts.items()):
            table.add_row("" if number else kind, verdict, str(count))
    console.print(table)
    table = Table(title="mean NDCG ×100")
    table.add_column("of")
    for heading in ("as asked first", "kept of those", "kept with rethinks"):
        table.add_column(heading, justify="right")
    for kind, means in summary["ndcg"].items():
        cells = ("-" if mean is None else f"{100 * mean:.1f}" for mean in means.values())
        table.add_row(SCORED[kind], *cells)
    console.print(table)
    if unanswered := summary["unanswered"]:
        told = ", ".join(f"{step} {count}" for step, count in unanswered.items())
        console.print(f"[yellow]left open:[/] {told}")
    tokens = summary["tokens"]
    console.print(f"tokens: {tokens['prompt']:,} of prompts, {tokens['reply']:,} of replies")


def _plot(traces: pa.Table, path: Path) -> None:
    """Scores and lengths of what was kept and what was dropped."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    kept = np.asarray(traces["verdict"].to_pylist()) == KEPT
    columns = {
        "score": "NDCG of the ranking (or the follow-up's)",
        "reply_tokens": "tokens of the reply",
    }
    for axis, (name, title) in zip(axes, columns.items(), strict=True):
        values = traces[name].to_numpy().astype(float)
        known = np.isfinite(values)
        if known.any():
            bins = np.histogram_bin_edges(values[known], bins=20)
            parts = [values[known & kept], values[known & ~kept]]
            axis.hist(parts, bins=bins, stacked=True, color=[BLUE, GREY], label=["kept", "dropped"])
            axis.legend(fontsize=8, frameon=False)
        axis.set_title(title, fontsize=11)
        plain_frame(axis)
    save_png(figure, path)

"""`starec rollouts RUN`: read what was asked, what was answered, and what it earned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from starec_ray.cli.terminal import printable
from starec_ray.errors import DataError
from starec_ray.run_dir import RunDir


def rollouts(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    iteration: Annotated[
        int | None,
        typer.Option(
            help="Which iteration, both stages counted; by default the last, or all with --case."
        ),
    ] = None,
    kind: Annotated[
        Literal["rank", "reflect", "rank_again"] | None,
        typer.Option(help="Only rankings, reflections, or the rankings that follow them."),
    ] = None,
    case: Annotated[str | None, typer.Option(help="Only this case id.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Highest rewards first.")] = False,
    worst: Annotated[bool, typer.Option("--worst", help="Lowest rewards first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Print at most this many.")] = 8,
) -> None:
    """Print sampled rollouts: prompt, rationale, ranking with the target marked, reward."""
    if best and worst:
        raise typer.BadParameter("give --best or --worst, not both")
    found = RunDir(run, create=False)
    table = found.read_rollouts(iteration)
    if case is not None:
        if iteration is None:
            table = pa.concat_tables(map(found.read_rollouts, found.rollout_iterations()))
        table = table.filter(pc.field("case_id") == case)
        if not len(table):
            where = "any iteration" if iteration is None else f"iteration {iteration}"
            raise DataError(f"{found.rollouts} holds no rollout of case {case} in {where}.")
    shown = select(table, kind=kind, best=best, worst=worst, limit=limit)
    console = Console()
    previous = None
    for row in shown.to_pylist():
        console.print(render(row, with_prompt=row["prompt"] != previous))
        previous = row["prompt"]
    console.print(f"{shown.num_rows} of {table.num_rows} rollouts", style="dim", highlight=False)


def select(table: pa.Table, *, kind: str | None, best: bool, worst: bool, limit: int) -> pa.Table:
    """The rows asked for, in the order written, or by reward with `best` or `worst`."""
    if kind is not None:
        table = table.filter(pc.field("kind") == kind)
    if best or worst:
        table = table.sort_by([("reward", "descending" if best else "ascending")])
    return table.slice(0, limit)


def render(row: dict[str, Any], *, with_prompt: bool) -> Panel:
    """One row of READABLE_ROLLOUTS; the prompt is left out where the one before has the same."""
    parts: list[Any] = []
    if with_prompt:
        parts += [Rule("prompt", style="dim"), _text(row["prompt"], "dim")]
    if row["rationale"]:
        parts += [Rule("rationale", style="dim"), _text(row["rationale"], "italic")]
    if row["ranking"] is not None:
        parts += [Rule("ranking", style="dim"), _ranking(row["ranking"], row["target_rank"])]
    if row["summary"] is not None:
        parts += [Rule("summary", style="dim"), _text(row["summary"])]
    if row["malformed"]:
        parts += [Rule("reply, malformed", style="red"), _text(row["reply"])]
    title = (
        f"{row['kind']} · case {row['case_id']} · iteration {row['iteration']} · "
        f"rollout {row['rollout']}"
    )
    return Panel(
        Group(*parts),
        title=_text(title),
        title_align="left",
        subtitle=_text(_outcome(row)),
        subtitle_align="left",
        border_style="green" if row["reward"] > 0 else "red" if row["reward"] < 0 else "yellow",
    )


def _ranking(titles: Sequence[str], target_rank: int | None) -> Text:
    lines = Text()
    for rank, title in enumerate(titles, start=1):
        is_target = rank == target_rank
        mark = "→" if is_target else " "
        lines.append(
            f"{mark} {rank:>2}. {printable(title)}\n", style="bold green" if is_target else ""
        )
    lines.rstrip()
    return lines


def _outcome(row: dict[str, Any]) -> str:
    parts = [f"reward {row['reward']:+.3f}", f"advantage {row['advantage']:+.3f}"]
    if row["target_rank"] is not None:
        parts.append(f"target rank {row['target_rank']}")
    if row["chosen"] is not None:
        parts.append(f"chosen: {row['chosen']}")
    if row["malformed"]:
        faults = (f"{row[name]} {name}" for name in ("missing", "repeated", "invented"))
        parts.append("malformed: " + ", ".join(faults))
    return " · ".join(parts)


def _text(text: str, style: str = "") -> Text:
    """As it is: neither the model's markup nor its control characters reach the terminal."""
    return Text(printable(text), style=style)

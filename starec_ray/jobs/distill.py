"""Traces from a teacher: what `starec distill` does once the teacher is chosen."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from starec_ray.agent.agent import Agent
from starec_ray.agent.formats import FORMATS
from starec_ray.agent.prompts import PromptWriter
from starec_ray.data.dataset import Dataset
from starec_ray.distill.journal import Journal
from starec_ray.distill.pipeline import Distillation, DistillSettings
from starec_ray.distill.report import print_distillation, write_distillation
from starec_ray.distill.teachers import CUT_OFF, Teacher
from starec_ray.errors import STARecError
from starec_ray.files import failing_for

ITEM_ATTRIBUTES = ("year", "tags", "people", "popularity")  # what a teacher is shown
REMEDY = (
    "Raise --max-prompt-tokens, or prepare the data with fewer negatives: starec data prepare … "
    "--train-negatives."
)


def distill(
    agent: Agent,
    cases: Sequence[str],
    targets: dict[str, str],
    teacher: Teacher,
    settings: DistillSettings,
    asked_how: Sequence[Any],
    out: Path,
    console: Console,
) -> None:
    """Lets the teacher play the loop, and writes what came of it into `out`.

    Raises:
        STARecError: it answered nothing; no table is written then.
        StorageError: `out` can't be written.

    Args:
        agent: see `teachers_agent`.
        cases: see `pipeline.choose_cases`.
        targets: case id → item id that the user chose.
        asked_how: what of the teacher's settings changes its answers, plain JSON values. Answers
            of a journal in `out` stand where they are the same.
    """
    how = json.dumps([teacher.name, *asked_how, *(["guided"] * settings.guided)])
    with failing_for(out, "Give another --out."):
        out.mkdir(parents=True, exist_ok=True)
        journal = Journal(out / "journal.jsonl", how)
    with journal:
        if len(journal):
            console.print(f"going on: {len(journal)} answers are there")
        distillation = Distillation(agent, cases, targets, teacher, journal, settings)
        traces = distillation.run()
        if not len(traces) and not teacher.usage.budget_spent:
            raise STARecError(
                f"the teacher {teacher.name} answered nothing ({_told(teacher.usage.faults)}): "
                f"look at its address and its log. The table in {out}, if there is one, stays."
            )
        summary = write_distillation(out, traces, teacher.usage.plain(), distillation.unanswered)
    print_distillation(summary, console)
    if faults := teacher.usage.faults:
        console.print(f"requests that failed: {_told(faults)}")
        if faults[CUT_OFF]:
            console.print("[yellow]thoughts used up all tokens:[/] raise --max-tokens")
    if teacher.usage.budget_spent:
        console.print("[yellow]the budget is spent:[/] the same command goes on from here")
    console.print(f"traces: {out / 'traces.parquet'}")


def _told(faults: Counter[str]) -> str:
    return ", ".join(f"{cause} {count} ×" for cause, count in faults.most_common())


def teachers_agent(
    dataset: Dataset, reply_format: str, history_shown: int, max_prompt_tokens: int
) -> Agent:
    """The agent that a teacher plays: its prompts show all that is known, and it thinks first.

    Args:
        reply_format: one of `FORMATS`.
        history_shown: newest items in a prompt.
        max_prompt_tokens: room for a prompt, in tokens.
    """
    writer = PromptWriter(
        FORMATS[reply_format],
        ITEM_ATTRIBUTES,
        max((item.popularity for item in dataset.items.values()), default=0),
        think_before_ranking=True,
    )
    return Agent(
        dataset, writer, history_shown, max_prompt_tokens, constrained=False, remedy=REMEDY
    )

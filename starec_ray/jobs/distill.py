"""Traces from a teacher: what `starec distill` does."""

import json
from collections import Counter
from pathlib import Path

from rich.console import Console

from starec_ray.agent.agent import Agent
from starec_ray.agent.formats import FORMATS
from starec_ray.agent.prompts import PromptWriter
from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.distill.journal import Journal
from starec_ray.distill.pipeline import Distillation, choose_cases
from starec_ray.distill.report import print_distillation, write_distillation
from starec_ray.distill.settings import (
    DistillSettings,
    EndpointSettings,
    LocalSettings,
    PromptSettings,
    TeacherSettings,
)
from starec_ray.distill.teachers import CUT_OFF, Teacher, TemplateAnswers
from starec_ray.errors import STARecError
from starec_ray.files import failing_for

ITEM_ATTRIBUTES = ("year", "tags", "people", "popularity")  # what a teacher is shown
REMEDY = (
    "Raise --max-prompt-tokens, or prepare the data with fewer negatives: starec data prepare … "
    "--train-negatives."
)


def distill(
    data: Path,
    out: Path,
    asked: TeacherSettings,
    prompts: PromptSettings,
    settings: DistillSettings,
    console: Console,
) -> None:
    """Lets a teacher play the loop on the users of a data folder, and writes what came of it into
    `out`; answers that lie there already stand, unless they were given otherwise (`Teacher.how`).

    Raises:
        DataError: there is nobody to ask about.
        ConfigError: prompts don't fit, or the teacher can't be asked.
        STARecError: it answered nothing; no table is written then.
        StorageError: `out` can't be written.
    """
    agent = teachers_agent(Dataset.load(data), prompts)
    cases = choose_cases(agent, settings)  # before a teacher is built, which may take long
    teacher = _teacher(asked, agent)
    targets = load_targets(data)
    how = json.dumps([teacher.name, teacher.how, settings.guided], sort_keys=True)
    with failing_for(out, "Give another --out."):
        out.mkdir(parents=True, exist_ok=True)
        journal = Journal(out / "journal.jsonl", how)
    with journal:
        if len(journal):
            console.print(f"going on: {len(journal)} answers are there")
        distillation = Distillation(agent, cases, targets, teacher, journal, settings)
        traces = distillation.run()
        usage, unanswered = teacher.usage, distillation.unanswered
        if not len(traces) and not usage.budget_spent:
            raise STARecError(
                f"the teacher {teacher.name} answered nothing ({_told(usage.faults)}): "
                f"look at its address and its log. The table in {out}, if there is one, stays."
            )
        summary = write_distillation(out, traces, cases, usage.plain(), unanswered)
    print_distillation(summary, console)
    if faults := usage.faults:
        console.print(f"requests that failed: {_told(faults)}")
        if faults[CUT_OFF]:
            console.print("[yellow]thoughts used up all tokens:[/] raise --max-tokens")
    if usage.budget_spent:
        console.print("[yellow]the budget is spent:[/] the same command goes on from here")
    console.print(f"traces: {out / 'traces.parquet'}")


def _teacher(asked: TeacherSettings, agent: Agent) -> Teacher:
    """Loads what it needs and no other teacher's: Ray, or an endpoint's client."""
    if isinstance(asked, EndpointSettings):
        from starec_ray.distill.endpoint import EndpointTeacher

        return EndpointTeacher(asked)
    if isinstance(asked, LocalSettings):
        from starec_ray.cluster.connection import start_ray
        from starec_ray.distill.local import LocalTeacher

        start_ray({})
        return LocalTeacher(asked)
    return TemplateAnswers(agent.dataset, agent.writer.reply_format, asked.popularity_weight)


def _told(faults: Counter[str]) -> str:
    return ", ".join(f"{cause} {count} ×" for cause, count in faults.most_common())


def teachers_agent(dataset: Dataset, prompts: PromptSettings) -> Agent:
    """The agent that a teacher plays: its prompts show all that is known, and it thinks first."""
    writer = PromptWriter(
        FORMATS[prompts.reply_format],
        ITEM_ATTRIBUTES,
        dataset.most_popular,
        think_before_ranking=True,
    )
    return Agent(
        dataset,
        writer,
        prompts.history_shown,
        prompts.max_prompt_tokens,
        constrained=False,
        remedy=REMEDY,
    )

"""Traces for the anchor: read from a file, or written by the template teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from starec_ray.agent.agent import Agent
from starec_ray.agent.formats import TOP_GRADE
from starec_ray.agent.item_text import without_brackets
from starec_ray.agent.tasks import RankTask, ReflectTask, Task
from starec_ray.agent.teacher import TemplateTeacher
from starec_ray.errors import ConfigError, DataError
from starec_ray.schemas import TRACE_KINDS, TRACES

BUNDLED, TEMPLATE = "bundled", "template"
BUNDLED_TRACES = Path(__file__).parents[1] / "distill" / "bundled_traces.parquet"
KEPT = "kept"  # DISTILLED's verdict on what is learned from
WRITTEN = ("summary_before", "rationale", "summary")  # a teacher's own words
# Scores rankings (columns case_id, ranking, malformed) and so reveals the feedback.
Score = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class TraceSource:
    """Where traces come from: a table's file, or with None the template teacher; and the kinds
    that are taken of it."""

    path: Path | None
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, name: str) -> "TraceSource":
        """Reads a file's name, "bundled" or "template", with or without kinds behind it:
        "bundled:reflect,summarize".

        Raises:
            ConfigError: if no trace could come of it.
        """
        table, _, last = str(name).rpartition(":")
        kinds = tuple(last.split(","))
        if not table or not set(kinds) <= set(TRACE_KINDS):
            table, kinds = str(name), TRACE_KINDS
        if table == TEMPLATE:
            if not set(kinds) & {"rank", "reflect"}:
                raise ConfigError(
                    f"traces {name!r}: the template teacher ranks and reflects, so that none would "
                    "come of it."
                )
            return cls(None, kinds)
        return cls(BUNDLED_TRACES if table == BUNDLED else Path(table), kinds)

    def __str__(self) -> str:
        """What `of` reads again, from any working folder."""
        table = str(self.path.absolute()) if self.path else TEMPLATE
        if self.path == BUNDLED_TRACES:  # wherever the program lies
            table = BUNDLED
        return f"{table}:{','.join(self.kinds)}" if self.kinds != TRACE_KINDS else table


def trace_files(names: Sequence[str]) -> list[Path]:
    """The files among the sources of traces."""
    return [path for path in (TraceSource.of(name).path for name in names) if path]


def read_traces(path: str | Path, agent: Agent) -> pa.Table:
    """A trace table as any teacher wrote it, but for brackets in its words, which could spell
    control tokens: they become look-alikes. Of a distillation's, the traces that were kept.

    Raises:
        DataError: if the file lacks a column, or has a trace of a case that isn't one of a
            training user of the agent's dataset, or one that can't be learned from.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from error
    missing = [name for name in TRACES.names if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path}: not a trace table, column(s) {', '.join(missing)} are missing; "
            f"starec_ray/schemas.py lists what TRACES holds."
        )
    if "verdict" in table.column_names:
        table = table.filter(pc.equal(table["verdict"], KEPT))
    try:
        table = table.select(TRACES.names).cast(TRACES)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: a column has another type than TRACES: {error}") from error
    for name in WRITTEN:
        texts = [text and without_brackets(text) for text in table[name].to_pylist()]
        place = table.schema.get_field_index(name)
        table = table.set_column(place, TRACES.field(name), pa.array(texts, pa.string()))
    _check_rows(table, agent, path)
    return table


def _check_rows(table: pa.Table, agent: Agent, path: str | Path) -> None:
    allowed = set(agent.dataset.case_ids("train"))
    foreign = [c for c in table.column("case_id").to_pylist() if c not in allowed]
    if foreign:
        raise DataError(
            f"{path}: {len(foreign)} traces are of cases that aren't training cases of this "
            f"data (first: {foreign[0]}). Prepare the data with the parameters and the seed "
            "that the traces were made with."
        )
    for trace in table.to_pylist():
        if fault := _fault(trace, agent):
            raise DataError(
                f"{path}: trace {trace['trace_id']!r} of case {trace['case_id']}: {fault}."
            )


def _fault(trace: dict, agent: Agent) -> str | None:
    shown = [item.item_id for item in agent.dataset.case(trace["case_id"]).candidates]
    if trace["kind"] == "rank":
        if sorted(trace["ranking"] or []) != sorted(shown):
            return "its ranking isn't a permutation of the candidates"
        grades = trace["grades"]
        if grades is not None and (
            len(grades) != len(shown) or not all(0 <= grade <= TOP_GRADE for grade in grades)
        ):
            return f"its grades aren't {len(shown)} numbers from 0 to {TOP_GRADE}"
        return None
    if trace["kind"] == "summarize":
        return None if trace["summary"] else "it has no summary"
    if trace["kind"] != "reflect":
        return f"its kind is {trace['kind']!r}, not one of {', '.join(TRACE_KINDS)}"
    if sorted(trace["predicted"] or []) != sorted(shown):
        return "what it predicted isn't a permutation of the candidates"
    if trace["chosen"] not in shown:
        return "what was chosen is no candidate"
    return None if trace["summary"] else "it has no summary"


def gather_traces(config: Any, agent: Agent, score: Score) -> pa.Table:
    """The traces that a run is anchored on, `schemas.TRACES`, from all its sources.

    Reads traces, num_traces, trace_weights (0 leaves a kind out), reflect_trace_share,
    teacher_popularity_weight and seed of `config`.

    Args:
        score: called if the template teacher is a source.
    """
    tables = []
    for source in map(TraceSource.of, config.traces or [TEMPLATE]):
        kinds = [kind for kind in source.kinds if config.trace_weights.get(kind, 1)]
        if source.path:
            tables.append(choose_traces(read_traces(source.path, agent), kinds, config.seed))
            continue
        share = config.reflect_trace_share if "rank" in kinds else 1.0
        tables.append(
            write_template_traces(
                agent,
                score,
                num_traces=config.num_traces if {"rank", "reflect"} & set(kinds) else 0,
                reflect_share=share if "reflect" in kinds else 0.0,
                popularity_weight=config.teacher_popularity_weight,
                seed=config.seed,
            )
        )
    return mix_traces(tables, config.num_traces)


def choose_traces(table: pa.Table, kinds: Sequence[str], seed: int) -> pa.Table:
    """The traces of these kinds, shuffled."""
    table = table.filter(pc.is_in(table["kind"], pa.array(kinds, pa.string())))
    return table.take(np.random.default_rng(seed).permutation(len(table)))


def mix_traces(tables: Sequence[pa.Table], num_traces: int) -> pa.Table:
    """At most `num_traces` traces, from each table in turn while it has any."""
    turns = np.concatenate([np.arange(len(table)) for table in tables])
    return pa.concat_tables(tables).take(np.argsort(turns, kind="stable")[:num_traces])


def write_template_traces(
    agent: Agent,
    score: Score,
    *,
    num_traces: int,
    reflect_share: float,
    popularity_weight: float,
    seed: int,
) -> pa.Table:
    """Traces of the template teacher (`schemas.TRACES`) for training users, shuffled.

    A reflection follows the teacher's own ranking of the case, after that was scored.
    """
    dataset = agent.dataset
    teacher = TemplateTeacher(dataset, agent.writer.attributes, popularity_weight)
    rng = np.random.default_rng(seed)
    case_ids = [str(c) for c in rng.permutation(np.array(dataset.case_ids("train"), dtype=object))]
    num_reflect = round(num_traces * reflect_share)
    rank_tasks = [
        RankTask(case_id, agent.initial_summary(case_id))
        for case_id in case_ids[: max(num_traces - num_reflect, num_reflect)]
    ]
    answers = [teacher.rank(task) for task in rank_tasks]
    rankings = pa.table(
        {
            "case_id": [task.case_id for task in rank_tasks],
            "ranking": pa.array([a["ranking"] for a in answers], pa.list_(pa.string())),
            "malformed": [False] * len(answers),
        }
    )
    rows = [
        trace_columns("rank", task, answer, teacher.name)
        for task, answer in zip(rank_tasks, answers, strict=True)
    ][: num_traces - num_reflect]
    if num_reflect:
        chosen = score(rankings.slice(0, num_reflect)).column("chosen").to_pylist()
        for task, answer, choice in zip(rank_tasks, answers, chosen, strict=False):
            predicted = tuple(str(item_id) for item_id in answer["ranking"])
            reflect = ReflectTask(task.case_id, task.summary, predicted, choice)
            rows.append(trace_columns("reflect", reflect, teacher.reflect(reflect), teacher.name))
    order = rng.permutation(len(rows))
    return pa.Table.from_pylist([rows[i] for i in order], schema=TRACES)


def trace_columns(kind: str, task: Task, answer: dict, teacher: str) -> dict[str, Any]:
    """A row of `schemas.TRACES`: the task, and a teacher's answer (its own columns)."""
    return {
        "trace_id": f"{teacher}/{kind}/{task.case_id}",
        "kind": kind,
        "case_id": task.case_id,
        "teacher": teacher,
        "summary_before": task.summary,
        "predicted": task.predicted if isinstance(task, ReflectTask) else None,
        "chosen": task.chosen if isinstance(task, ReflectTask) else None,
        "rationale": answer["rationale"],
        "ranking": answer.get("ranking"),
        "grades": answer.get("grades"),
        "summary": answer.get("summary"),
    }

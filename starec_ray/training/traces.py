"""Traces for the anchor: where they come from, how they are read, checked and mixed."""

from collections.abc import Sequence
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
from starec_ray.errors import ConfigError, DataError
from starec_ray.schemas import TRACE_KINDS, TRACES
from starec_ray.training.template_traces import Score, write_template_traces

BUNDLED, TEMPLATE = "bundled", "template"
BUNDLED_TRACES = Path(__file__).parents[1] / "distill" / "bundled_traces.parquet"
KEPT = "kept"  # DISTILLED's verdict on what is learned from
WRITTEN = ("summary_before", "rationale", "summary")  # a teacher's own words


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

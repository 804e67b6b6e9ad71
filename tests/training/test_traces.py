"""Traces of any teacher drop in, if they can be learned from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask, ReflectTask, SummarizeTask
from starec_ray.config import STARecConfig
from starec_ray.data.dataset import Dataset
from starec_ray.data.prepare import prepare
from starec_ray.errors import DataError
from starec_ray.models.tokens import prompt_ids
from starec_ray.schemas import TRACES
from starec_ray.training.sequences import from_traces
from starec_ray.training.traces import BUNDLED_TRACES, KEPT, read_traces
from tests.small_world import dataset, write_random_traces


@pytest.fixture
def agent(small_world) -> Agent:
    return Agent.from_config(STARecConfig(), dataset(small_world))


def test_a_written_table_is_read_as_it_is(agent, tmp_path):
    path = write_random_traces(tmp_path / "t.parquet", agent, 8)
    assert read_traces(path, agent).equals(pq.read_table(path))


def with_words(path: Path, agent: Agent, **words: str) -> pa.Table:
    """One reflection with these words, written and read again."""
    row = pq.read_table(write_random_traces(path, agent, 1)).to_pylist()[0] | words
    pq.write_table(pa.Table.from_pylist([row], schema=TRACES), path)
    return read_traces(path, agent)


def test_words_of_any_teacher_spell_no_control_token(agent, tmp_path):
    words = {
        "rationale": "First a look.\nSo <|im_end|> it </think> is ＜s> [INST].",
        "summary": "Likes <|im_end|> Bravo.",
        "summary_before": "Likes <think> Alpha.",
    }
    [read] = with_words(tmp_path / "t.parquet", agent, **words).to_pylist()
    assert read["rationale"] == "First a look.\nSo ‹|im_end|› it ‹/think› is ‹s› (INST)."
    assert read["summary"] == "Likes ‹|im_end|› Bravo."
    assert read["summary_before"] == "Likes ‹think› Alpha."


def test_a_reply_to_learn_ends_once_whatever_its_teacher_wrote(agent, tmp_path, tokenizer):
    end = tokenizer.eos_token
    words = {"rationale": f"So {end} it is", "summary": f"Likes {end} Bravo."}
    traces = with_words(tmp_path / "t.parquet", agent, **words)
    [reply] = from_traces(traces, agent, tokenizer)["reply_ids"].to_pylist()
    assert reply.count(tokenizer.eos_token_id) == 1 and reply[-1] == tokenizer.eos_token_id


def trace(kind: str, **columns) -> dict:
    row = dict.fromkeys(TRACES.names) | {"trace_id": "1", "kind": kind, "case_id": "u0/0"}
    words = {"teacher": "chance", "rationale": "It fits.", "summary_before": "Likes Delta."}
    return row | words | columns


RANKED = {"ranking": ["2", "0", "3", "1"]}
GRADED = RANKED | {"grades": [5, 1, 9, 3]}


@pytest.mark.parametrize(
    ("model", "row", "reply"),
    [
        ({}, trace("rank", **GRADED), "<think>It fits.</think>\n Alpha5 Bravo1 Charlie9 Delta3"),
        (
            {"think_before_ranking": False},
            trace("rank", **GRADED),
            " Alpha5 Bravo1 Charlie9 Delta3",
        ),
        (
            {"think_before_ranking": False},  # in equal steps, best first
            trace("rank", **RANKED),
            " Alpha7 Bravo2 Charlie9 Delta4",
        ),
        (
            {"think_before_ranking": False, "constrained_decoding": True},
            trace("rank", **GRADED),
            " Alpha5 Bravo1 Charlie9 Delta3",
        ),
        (
            {"think_before_ranking": False, "reply_format": "titles"},
            trace("rank", **GRADED),
            "1. Charlie\n2. Alpha\n3. Delta\n4. Bravo\n",
        ),
        (
            {},
            trace("reflect", predicted=["2", "0", "3", "1"], chosen="3", summary="Likes Bravo."),
            "<think>It fits.</think>\nLikes Bravo.",
        ),
        ({}, trace("summarize", summary="Likes Bravo."), "<think>It fits.</think>\nLikes Bravo."),
    ],
)
def test_a_trace_is_the_prompt_of_its_task_and_the_reply_in_its_words(
    small_world, tokenizer, model, row, reply
):
    mind = Agent.from_config(STARecConfig().model(**model), dataset(small_world))
    table = from_traces(pa.Table.from_pylist([row], schema=TRACES), mind, tokenizer)
    [learned] = table.to_pylist()
    assert tokenizer.decode(learned["reply_ids"]) == reply + tokenizer.eos_token
    task = {
        "rank": RankTask("u0/0", "Likes Delta."),
        "reflect": ReflectTask("u0/0", "Likes Delta.", ("2", "0", "3", "1"), "3"),
        "summarize": SummarizeTask("u0/0"),
    }[row["kind"]]
    messages = mind.prompt(task, lambda messages: 0).messages
    assert learned["prompt_ids"] == prompt_ids(tokenizer, messages)


@pytest.mark.parametrize(
    "text",
    ["  Two\n\n  spaces,\ttabs:\n---\n", "x" * 30_000, "…", "", "می\u200cخواهم 👨\u200d👩\u200d👧"],
)
def test_words_without_brackets_stay_as_they_are(agent, tmp_path, text):
    [read] = with_words(tmp_path / "t.parquet", agent, rationale=text).to_pylist()
    assert read["rationale"] == text


def test_the_bundled_words_stay_as_they_are(tmp_path):
    prepare("synthetic", tmp_path / "data", negatives=7)
    bundled = Agent.from_config(STARecConfig(), Dataset.load(tmp_path / "data"))
    table = pq.read_table(BUNDLED_TRACES)
    kept = table.filter(pc.equal(table["verdict"], KEPT)).select(TRACES.names)
    assert read_traces(BUNDLED_TRACES, bundled).equals(kept.cast(TRACES))


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (1, {"ranking": ["0", "1"]}, "'1' of case .*isn't a permutation"),
        (1, {"grades": [1, 2, 3]}, "aren't 4 numbers"),
        (1, {"grades": [1, 2, 3, 12]}, "from 0 to 9"),
        (1, {"kind": "guess"}, "'guess', not one of rank, reflect, summarize"),
        (0, {"predicted": None}, "predicted isn't a permutation"),
        (0, {"chosen": "99"}, "no candidate"),
        (0, {"summary": None}, "no summary"),
        (1, {"grades": [1, 2, 3, -1]}, "from 0 to 9"),
        (1, {"grades": [1, 2, 3, 10]}, "from 0 to 9"),
        (0, {"kind": "summarize", "summary": ""}, "no summary"),
        (0, {"kind": "summarize", "summary": None}, "no summary"),
        (0, {"case_id": "u3/0"}, "training cases"),
    ],
)
def test_a_trace_that_cannot_be_learned_from_is_named(agent, tmp_path, row, change, message):
    path = write_random_traces(tmp_path / "t.parquet", agent, 4)
    rows = pq.read_table(path).to_pylist()
    rows[row] |= change
    pq.write_table(pa.Table.from_pylist(rows, schema=TRACES), path)
    with pytest.raises(DataError, match=message):
        read_traces(path, agent)


def test_a_table_without_a_column_names_it(agent, tmp_path):
    path = write_random_traces(tmp_path / "t.parquet", agent, 4)
    pq.write_table(pq.read_table(path).drop_columns(["teacher"]), path)
    with pytest.raises(DataError, match="teacher are missing"):
        read_traces(path, agent)

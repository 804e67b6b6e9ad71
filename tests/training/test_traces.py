"""Traces of any teacher drop in, if they can be learned from."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starec_ray.agent.agent import Agent
from starec_ray.config import STARecConfig
from starec_ray.errors import DataError
from starec_ray.schemas import TRACES
from starec_ray.training.traces import read_traces
from tests.small_world import dataset, write_random_traces


@pytest.fixture
def agent(small_world) -> Agent:
    return Agent.from_config(STARecConfig(), dataset(small_world))


def test_a_written_table_is_read_as_it_is(agent, tmp_path):
    path = write_random_traces(tmp_path / "t.parquet", agent, 8)
    assert read_traces(path, agent).equals(pq.read_table(path))


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

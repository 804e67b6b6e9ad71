"""Stage one's material: batches, weights, and what is held out."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from starec_ray.agent.agent import Agent
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError, DataError
from starec_ray.schemas import TRACE_KINDS
from starec_ray.training.anchor import AnchorData
from starec_ray.training.traces import BUNDLED_TRACES, TraceSource, gather_traces
from tests.small_world import TARGET, dataset, write_random_traces


@pytest.fixture(scope="module")
def agent(small_world) -> Agent:
    return Agent.from_config(STARecConfig(), dataset(small_world))


@pytest.fixture(scope="module")
def traces(agent, tmp_path_factory) -> pa.Table:
    path = tmp_path_factory.mktemp("traces") / "traces.parquet"
    return pq.read_table(write_random_traces(path, agent, 40))


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def anchor_data(traces, agent, tokenizer, **changes) -> AnchorData:
    settings = {
        "longest_replies": {"rank": 99, "reflect": 99, "summarize": 99},
        "weights": {},
        "held_out_share": 0.0,
        "epochs": 2,
        "batch_size": 7,
        "seed": 1,
    }
    return AnchorData(traces, agent, tokenizer, **(settings | changes))


def gathered(agent, sources, **changes) -> pa.Table:
    config = STARecConfig().anchor(traces=sources, **changes)
    chosen = [TARGET] * config.num_traces
    return gather_traces(config, agent, lambda ranked: pa.table({"chosen": chosen[: len(ranked)]}))


def test_each_epoch_learns_every_trace_once_in_another_order(traces, agent, tokenizer):
    data = anchor_data(traces, agent, tokenizer)
    assert (data.updates_per_epoch, data.updates) == (6, 12)
    orders = []
    for epoch in range(2):
        batches = [data.batch(6 * epoch + number) for number in range(6)]
        assert [len(batch) for batch in batches] == [7, 7, 7, 7, 7, 5]
        orders.append([g for batch in batches for g in batch["group"].to_pylist()])
        assert sorted(orders[-1]) == list(range(40))
    assert orders[0] != orders[1]


def test_a_kind_has_its_weight_in_the_loss(traces, agent, tokenizer):
    weighted = anchor_data(traces, agent, tokenizer, weights={"reflect": 0.25}).train
    assert Counter(weights[0] for weights in weighted["advantages"].to_pylist()) == {
        1: 30,
        0.25: 10,
    }


def test_kinds_can_be_left_out_before_traces_are_counted(agent, tmp_path):
    path = str(write_random_traces(tmp_path / "t.parquet", agent, 40))
    chosen = gathered(agent, [path], num_traces=20, trace_weights={"reflect": 0})
    assert chosen["kind"].to_pylist() == ["rank"] * 20
    assert len(set(chosen["trace_id"].to_pylist())) == 20
    assert len(gathered(agent, [path], num_traces=99)) == 40


def test_sources_are_mixed_in_turn_and_give_the_kinds_asked_of_them(agent, tmp_path):
    path = write_random_traces(tmp_path / "t.parquet", agent, 12)
    mixed = gathered(agent, ["template:rank", f"{path}:reflect"], num_traces=8).to_pylist()
    teachers = [(trace["teacher"], trace["kind"]) for trace in mixed]
    assert teachers[:6] == [("template", "rank"), ("chance", "reflect")] * 3  # all there are
    assert teachers[6:] == [("template", "rank")] * 2
    alone = gathered(agent, [], num_traces=8)
    assert alone.equals(gathered(agent, ["template"], num_traces=8))
    assert Counter(alone["kind"].to_pylist()) == {"rank": 6, "reflect": 2}
    reflections = gathered(agent, ["template:reflect"], num_traces=8)
    assert set(reflections["kind"].to_pylist()) == {"reflect"}


@pytest.mark.parametrize(
    ("name", "path", "kinds"),
    [
        ("template", None, TRACE_KINDS),
        ("bundled:reflect,summarize", BUNDLED_TRACES, ("reflect", "summarize")),
        ("a/b.parquet:rank", Path("a/b.parquet"), ("rank",)),
        ("a:b.parquet", Path("a:b.parquet"), TRACE_KINDS),
    ],
)
def test_a_source_of_traces_is_read_and_written_again(name, path, kinds):
    source = TraceSource.of(name)
    assert source == TraceSource(path, kinds)
    again = TraceSource.of(str(source))
    assert again == TraceSource(path and path.absolute(), kinds)


def test_a_kind_that_the_template_teacher_does_not_write_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"'template:summarize': the template teacher ranks and"):
        TraceSource.of("template:summarize")


def test_a_user_is_learned_or_held_out_never_both(traces, agent, tokenizer):
    data = anchor_data(traces, agent, tokenizer, held_out_share=0.25)
    learned, held_out = (
        {traces["case_id"][g].as_py().split("/")[0] for g in table["group"].to_pylist()}
        for table in (data.train, data.held_out)
    )
    assert len(held_out) == (len(learned) + len(held_out)) // 4 > 0
    assert not learned & held_out
    assert len(data.train) + len(data.held_out) == len(traces)


def test_replies_that_could_not_be_finished_are_left_out_and_counted(traces, agent, tokenizer):
    data = anchor_data(traces, agent, tokenizer)
    lengths = pc.list_value_length(data.train["reply_ids"]).to_numpy()
    kinds = np.array(traces["kind"].to_pylist())
    ranks = int(lengths[kinds == "rank"].max())
    short = anchor_data(
        traces, agent, tokenizer, longest_replies={"rank": ranks, "reflect": 1, "summarize": 1}
    )
    assert (short.too_long, len(short.train)) == (10, 30)
    with pytest.raises(DataError, match=r"no trace to learn: 40 were given, and 40 are longer"):
        anchor_data(traces, agent, tokenizer, longest_replies=dict.fromkeys(set(kinds), 1))

"""Stage one's material: batches, weights, and what is held out."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from starec_ray.agent.agent import Agent
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError, DataError
from starec_ray.schemas import TRACE_KINDS
from starec_ray.training import template_traces as module
from starec_ray.training.anchor import AnchorData
from starec_ray.training.template_traces import write_template_traces
from starec_ray.training.traces import (
    BUNDLED_TRACES,
    TraceSource,
    choose_traces,
    gather_traces,
)
from tests.small_world import TARGET, dataset, write_random_traces


@pytest.fixture(scope="module")
def agent(small_world) -> Agent:
    return Agent.from_config(STARecConfig(), dataset(small_world))


@pytest.fixture(scope="module")
def traces(agent, tmp_path_factory) -> pa.Table:
    path = tmp_path_factory.mktemp("traces") / "traces.parquet"
    return pq.read_table(write_random_traces(path, agent, 40))


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


def test_another_seed_holds_out_other_users_and_learns_in_another_order(traces, agent, tokenizer):
    one, other = (
        anchor_data(traces, agent, tokenizer, held_out_share=0.25, seed=seed) for seed in (1, 2)
    )
    assert set(one.held_out["group"].to_pylist()) != set(other.held_out["group"].to_pylist())
    one, other = (anchor_data(traces, agent, tokenizer, seed=seed) for seed in (1, 2))
    assert one.batch(0)["group"].to_pylist() != other.batch(0)["group"].to_pylist()


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


def test_of_a_table_whose_kinds_lie_one_behind_the_other_some_of_each_are_taken(agent, tmp_path):
    path = write_random_traces(tmp_path / "t.parquet", agent, 40)
    table = pq.read_table(path).sort_by("kind")
    pq.write_table(table, path)
    chosen = gathered(agent, [str(path)], num_traces=20)
    assert set(chosen["kind"].to_pylist()) == {"rank", "reflect"}
    one, other = (choose_traces(table, ["rank"], seed) for seed in (1, 2))
    assert one["trace_id"].to_pylist() != other["trace_id"].to_pylist()


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


def test_a_template_reflection_is_on_the_ranking_and_the_choice_of_its_own_case(agent):
    choices = {}

    def score(ranked: pa.Table) -> pa.Table:
        case_ids = ranked["case_id"].to_pylist()
        choices.update({case_id: str(row % 4) for row, case_id in enumerate(case_ids)})
        return pa.table({"chosen": [choices[case_id] for case_id in case_ids]})

    settings = {"num_traces": 12, "reflect_share": 0.5, "popularity_weight": 0.7}
    one, other = (
        write_template_traces(agent, score, **settings, seed=seed).to_pylist() for seed in (1, 2)
    )
    rankings = {row["case_id"]: row["ranking"] for row in one if row["kind"] == "rank"}
    reflections = [row for row in one if row["kind"] == "reflect"]
    assert len(rankings) == len(reflections) == 6
    for row in other:
        if row["kind"] == "reflect":
            assert row["chosen"] == choices[row["case_id"]]
    assert all(row["predicted"] == rankings[row["case_id"]] for row in reflections)
    assert [row["kind"] for row in one] != ["rank"] * 6 + ["reflect"] * 6
    assert [row["case_id"] for row in one] != [row["case_id"] for row in other]
    assert rankings.keys() != {row["case_id"] for row in other if row["kind"] == "rank"}


def test_the_template_teacher_weighs_popularity_as_the_configuration_says(agent, monkeypatch):
    weights, teacher = [], module.TemplateTeacher

    def weighed(dataset, attributes, popularity_weight):
        weights.append(popularity_weight)
        return teacher(dataset, attributes, popularity_weight)

    monkeypatch.setattr(module, "TemplateTeacher", weighed)
    gathered(agent, [], num_traces=8, teacher_popularity_weight=0.7)
    assert weights == [0.7]


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


def test_the_share_of_users_held_out_is_rounded_down(traces, agent, tokenizer):
    data = anchor_data(traces, agent, tokenizer, held_out_share=0.3)  # 3.6 of 12 users
    held_out = {
        traces["case_id"][g].as_py().split("/")[0] for g in data.held_out["group"].to_pylist()
    }
    assert len(held_out) == 3


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

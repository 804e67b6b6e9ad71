"""What the other tests of these parts leave open."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask, ReflectTask, SummarizeTask
from starec_ray.config import STARecConfig
from starec_ray.errors import DataError
from starec_ray.models.tokens import prompt_ids
from starec_ray.schemas import TRACES
from starec_ray.training import traces as module
from starec_ray.training.sequences import from_traces
from starec_ray.training.traces import choose_traces, read_traces, write_template_traces
from tests.small_world import dataset, write_random_traces
from tests.training.test_anchor import agent, anchor_data, gathered, tokenizer, traces


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


def test_another_seed_holds_out_other_users_and_learns_in_another_order(traces, agent, tokenizer):
    one, other = (
        anchor_data(traces, agent, tokenizer, held_out_share=0.25, seed=seed) for seed in (1, 2)
    )
    assert set(one.held_out["group"].to_pylist()) != set(other.held_out["group"].to_pylist())
    one, other = (anchor_data(traces, agent, tokenizer, seed=seed) for seed in (1, 2))
    assert one.batch(0)["group"].to_pylist() != other.batch(0)["group"].to_pylist()


def test_of_a_table_whose_kinds_lie_one_behind_the_other_some_of_each_are_taken(agent, tmp_path):
    path = write_random_traces(tmp_path / "t.parquet", agent, 40)
    table = pq.read_table(path).sort_by("kind")
    pq.write_table(table, path)
    chosen = gathered(agent, [str(path)], num_traces=20)
    assert set(chosen["kind"].to_pylist()) == {"rank", "reflect"}
    one, other = (choose_traces(table, ["rank"], seed) for seed in (1, 2))
    assert one["trace_id"].to_pylist() != other["trace_id"].to_pylist()


def test_the_share_of_users_held_out_is_rounded_down(traces, agent, tokenizer):
    data = anchor_data(traces, agent, tokenizer, held_out_share=0.3)  # 3.6 of 12 users
    held_out = {
        traces["case_id"][g].as_py().split("/")[0] for g in data.held_out["group"].to_pylist()
    }
    assert len(held_out) == 3


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

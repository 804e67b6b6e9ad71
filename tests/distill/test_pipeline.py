"""The loop that a teacher plays: what is asked, screened, rethought, kept, resumed, and told."""

import io
import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from starec_ray.agent.agent import Agent
from starec_ray.agent.formats import FORMATS
from starec_ray.agent.prompts import PromptWriter
from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.data.prepare import prepare
from starec_ray.distill.endpoint import EndpointTeacher
from starec_ray.distill.journal import Journal
from starec_ray.distill.pipeline import Distillation, choose_cases
from starec_ray.distill.report import print_distillation, summarise, write_distillation
from starec_ray.distill.screening import NO_ANSWER
from starec_ray.distill.settings import DistillSettings, EndpointSettings
from starec_ray.distill.teachers import Answer, TemplateAnswers, Usage
from starec_ray.errors import ConfigError
from starec_ray.metrics import ndcg_at
from starec_ray.schemas import DISTILLED
from starec_ray.training.traces import BUNDLED_TRACES, read_traces
from tests.distill.server import teacher_server

USERS = 12


@pytest.fixture(scope="module")
def agent(films) -> Agent:
    writer = PromptWriter(FORMATS["titles"], ("year", "tags"), 1, think_before_ranking=True)
    return Agent(Dataset.load(films), writer, 10, 8192, constrained=False)


def distil(agent, films, path, server=None, **endpoint):
    if server is None:
        teacher = TemplateAnswers(agent.dataset, agent.writer.reply_format, 0.3)
    else:
        settings = {"longest_wait_s": 0.02, "timeout_s": 0.5} | endpoint
        teacher = EndpointTeacher(EndpointSettings(server.url, "small", **settings))
    with Journal(path, teacher.name) as journal:
        settings = DistillSettings(USERS, min_score=0.5, rethinks=2, seed=3)
        cases = choose_cases(agent, settings)
        distillation = Distillation(agent, cases, load_targets(films), teacher, journal, settings)
        return distillation.run(), distillation


@pytest.fixture(scope="module")
def cases(agent) -> list[str]:
    """Those that `distil` asks about."""
    return choose_cases(agent, DistillSettings(USERS, seed=3))


@pytest.fixture(scope="module")
def table(agent, films, tmp_path_factory):
    with teacher_server() as server:
        table, _ = distil(agent, films, tmp_path_factory.mktemp("journal") / "j", server)
    return table


def test_all_three_kinds_come_of_training_users_alone(table, agent):
    assert table.schema == DISTILLED
    assert set(table["kind"].to_pylist()) == {"rank", "reflect", "summarize"}
    allowed = set(agent.dataset.case_ids("train"))
    assert set(table["case_id"].to_pylist()) <= allowed
    assert len({case_id.split("/")[0] for case_id in table["case_id"].to_pylist()}) == USERS


def test_scores_are_the_ndcg_of_the_rankings_and_screening_keeps_to_the_threshold(table, films):
    targets = load_targets(films)
    for row in table.to_pylist():
        if row["kind"] != "rank":
            continue
        rank = row["ranking"].index(targets[row["case_id"]]) + 1
        assert row["score"] == pytest.approx(ndcg_at([rank], 20)[0])
        assert row["verdict"] == ("kept" if row["score"] >= 0.5 else "low score")


def test_before_anything_is_asked_all_rankings_have_to_fit(agent):
    tight = Agent(agent.dataset, agent.writer, 10, 200, constrained=False, remedy="Ask me.")
    with pytest.raises(ConfigError, match=r"only 200 fit\. Ask me\.$"):
        choose_cases(tight, DistillSettings(USERS))


class SlyTeacher:
    """Thinks in control tokens."""

    name, how = "sly", {}

    def __init__(self) -> None:
        self.usage = Usage()

    def answer(self, questions, record):
        for question in questions:
            record(question, Answer("Likes Drama.", "So <|im_end|>\n it is [/INST], " * 900, 0, 0))


def test_a_rationale_spells_no_control_token_and_loses_nothing_else(agent, films, tmp_path):
    settings = DistillSettings(users=1, rethinks=0)
    with Journal(tmp_path / "j", "sly") as journal:
        cases = choose_cases(agent, settings)
        targets = load_targets(films)
        table = Distillation(agent, cases, targets, SlyTeacher(), journal, settings).run()
    expected = " ".join(["So ‹|im_end|› it is (/INST),"] * 900)
    assert set(table["rationale"].to_pylist()) == {expected}


def test_a_flawed_ranking_goes_back_with_the_misplaced_item_named_and_both_are_kept(table, films):
    rows = {row["trace_id"]: row for row in table.to_pylist()}
    rewritten = [row for row in rows.values() if row["kind"] == "rank" and row["rethinks"]]
    assert rewritten
    targets = load_targets(films)
    for row in rewritten:
        flawed = rows[row["rethinks"]]
        assert flawed["case_id"] == row["case_id"] and flawed["verdict"] == "low score"
        # This teacher moves to the front what the correction names.
        assert row["ranking"][0] == targets[row["case_id"]] and row["verdict"] == "kept"
        assert (flawed["attempt"], row["attempt"]) == (0, 1)


def test_reflections_are_on_the_teachers_real_mistakes(table, films):
    targets = load_targets(films)
    first = {
        row["case_id"]: row["ranking"]
        for row in table.to_pylist()
        if row["kind"] == "rank" and row["attempt"] == 0 and row["case_id"].endswith("/0")
    }
    reflections = [row for row in table.to_pylist() if row["kind"] == "reflect"]
    assert reflections
    for row in reflections:
        assert row["predicted"] == first[row["case_id"]]
        assert row["chosen"] == targets[row["case_id"]] != row["predicted"][0]
    wrong = {case_id for case_id, ranking in first.items() if ranking[0] != targets[case_id]}
    assert {row["case_id"] for row in reflections} == wrong


def test_the_teacher_never_sees_a_target_before_it_ranked(agent, films, tmp_path):
    targets = load_targets(films)
    titles = {item.item_id: item.title for item in agent.dataset.items.values()}
    with teacher_server() as server:
        distil(agent, films, tmp_path / "j", server)
    prompts = [request["messages"][1]["content"] for request in server.seen]
    before = [prompt for prompt in prompts if "You predicted:" not in prompt]
    assert any("Candidates:" in prompt for prompt in before)
    for prompt in before:
        memory = prompt.split("Candidates:")[0]  # the target is one of the candidates
        case = next(c for c in targets if _asks_for(agent, c, memory))
        assert f" {titles[targets[case]]} " not in memory


def test_a_rethought_reflection_is_not_told_what_the_user_chose_next(agent, films, tmp_path):
    targets = load_targets(films)
    titles = {item.item_id: item.title for item in agent.dataset.items.values()}
    with teacher_server() as server:
        distil(agent, films, tmp_path / "j", server)
    asked = [request["messages"] for request in server.seen]
    rethought = [m for m in asked if "You predicted:" in m[1]["content"] and len(m) > 2]
    assert any("the next prediction placed" in m[-1]["content"] for m in rethought)
    for messages in rethought:
        reflected = next(c for c in targets if _asks_for(agent, c, messages[1]["content"]))
        following = agent.dataset.case(reflected).next_case_id
        assert titles[targets[following]] not in messages[-1]["content"]


def _asks_for(agent, case_id, prompt) -> bool:
    latest = [line[2:] for line in prompt.splitlines() if line.startswith(("+ ", "- "))][-3:]
    history = agent.dataset.case(case_id).history[-3:]
    return all(
        line.startswith(f"{item.title} ") for line, (item, _) in zip(latest, history, strict=True)
    )


def test_a_run_that_failed_and_stopped_anywhere_ends_in_the_same_table(
    table, agent, films, tmp_path
):
    faults = ["HTTP 500", "HTTP 429", "timeout", "connection lost", "empty answer", "no completion"]
    asked = 0
    for budget in (5, 11, 17, 0):
        with teacher_server(faults) as server:
            again, stopped = distil(
                agent, films, tmp_path / "j", server, concurrency=2, budget_requests=budget
            )
            asked += stopped.teacher.usage.answers
        assert stopped.teacher.usage.budget_spent == bool(budget)
        assert bool(stopped.unanswered) == bool(budget)
    assert again.equals(table)
    assert asked == len((tmp_path / "j").read_text().splitlines())  # nothing was asked twice


def test_what_was_kept_drops_into_the_anchor(table, agent, tmp_path):
    pq.write_table(table, tmp_path / "traces.parquet")
    traces = read_traces(tmp_path / "traces.parquet", agent)
    assert len(traces) == table["verdict"].to_pylist().count("kept") < len(table)


def test_the_report_counts_what_the_table_holds(table, cases, tmp_path):
    summary = write_distillation(tmp_path, table, cases, {"requests": 1}, {"rank again": 2})
    assert summary["unanswered"] == {"rank again": 2}
    assert json.loads((tmp_path / "report.json").read_text()) == summary
    verdicts = summary["verdicts"]
    assert sum(sum(counts.values()) for counts in verdicts.values()) == len(table)
    assert summary["kept"] == table["verdict"].to_pylist().count("kept")
    ndcg = summary["ndcg"]["rank"]
    assert ndcg["asked"] < ndcg["screened"] <= 1 and ndcg["rethought"] > ndcg["asked"]
    assert summary["tokens"] == {"prompt": 50 * len(table), "reply": 10 * len(table)}
    assert (tmp_path / "report.png").stat().st_size > 1000
    assert pq.read_table(tmp_path / "traces.parquet").equals(table)


def test_the_report_counts_a_follow_up_with_its_reflection_and_not_among_the_rankings(table, cases):
    rows = [row for row in table.to_pylist() if row["kind"] == "rank" and row["attempt"] == 0]
    follow_ups = [row for row in rows if row["case_id"].endswith("/1")]
    first = [row for row in rows if row not in follow_ups]
    assert len(first) == USERS and follow_ups

    def mean(rows):
        return pytest.approx(sum(row["score"] for row in rows) / len(rows), abs=1e-4)

    ndcg = summarise(table, cases)["ndcg"]
    assert ndcg["rank"]["asked"] == mean(first) != mean(rows)
    assert ndcg["rank"]["screened"] == mean([row for row in first if row["verdict"] == "kept"])


def test_a_follow_up_is_known_by_its_case_and_not_by_how_that_is_called(table, cases):
    names = {
        case_id: f"case {n}" for n, case_id in enumerate(table["case_id"].unique().to_pylist())
    }
    place = table.schema.get_field_index("case_id")
    renamed = pa.array([names[case_id] for case_id in table["case_id"].to_pylist()])
    named = table.set_column(place, table.field(place), renamed)
    assert summarise(named, [names[case_id] for case_id in cases]) == summarise(table, cases)


def test_the_commonest_verdict_is_the_first():
    rows = [("rank", "low score"), ("rank", "kept"), ("rank", "kept")]
    columns = {name: pa.nulls(3, DISTILLED.field(name).type) for name in DISTILLED.names}
    columns |= {
        "kind": [k for k, _ in rows],
        "verdict": [v for _, v in rows],
        "case_id": ["u/0"] * 3,
        "attempt": [0] * 3,
    }
    assert list(summarise(pa.table(columns), ["u/0"])["verdicts"]["rank"].items()) == [
        ("kept", 2),
        ("low score", 1),
    ]


def test_the_screen_shows_the_commonest_verdict_first_and_ndcg_times_a_hundred():
    summary = {
        "traces": 9,
        "kept": 5,
        "tokens": {"prompt": 1200, "reply": 30},
        "verdicts": {"rank": {"kept": 5, "low score": 4}},
        "ndcg": {"rank": {"asked": 0.5, "screened": 0.75, "rethought": None}},
        "unanswered": {"rank again": 2},
    }
    console = Console(width=100, record=True, file=io.StringIO())
    print_distillation(summary, console)
    lines = [
        " ".join(line.split()) for line in console.export_text().replace("│", " ").splitlines()
    ]
    for line in (
        "9 answers, 5 kept",
        "rank kept 5",
        "low score 4",
        "rankings 50.0 75.0 -",
        "left open: rank again 2",
        "tokens: 1,200 of prompts, 30 of replies",
    ):
        assert line in lines


def test_the_template_teacher_goes_the_same_way(agent, films, tmp_path):
    table, distillation = distil(agent, films, tmp_path / "j")
    summary = summarise(table, distillation.cases)
    assert set(summary["verdicts"]) == {"rank", "reflect", "summarize"}
    assert summary["kept"] > USERS
    assert "malformed" not in summary["verdicts"]["rank"]


def test_the_bundled_traces_fit_the_demos_data_and_tell_how_they_were_screened(tmp_path):
    prepare("synthetic", tmp_path / "data", negatives=7)
    dataset = Dataset.load(tmp_path / "data")
    writer = PromptWriter(FORMATS["grades"], (), 1, think_before_ranking=False)
    agent = Agent(dataset, writer, 4, 1024, constrained=True)
    traces = read_traces(BUNDLED_TRACES, agent)
    assert len(traces) >= 200
    assert set(traces["kind"].to_pylist()) == {"rank", "reflect", "summarize"}
    rationales = traces["rationale"].to_pylist()
    assert len(set(rationales)) > 0.99 * len(rationales)  # nobody wrote them by a template
    targets = load_targets(tmp_path / "data")
    for row in traces.filter(pc.equal(traces["kind"], "rank")).to_pylist():
        assert dataset.items[targets[row["case_id"]]].title not in row["summary_before"]

    record = json.loads(BUNDLED_TRACES.with_suffix(".json").read_text())
    table, cases = pq.read_table(BUNDLED_TRACES), dataset.case_ids("train", 0)
    assert {key: record[key] for key in ("verdicts", "ndcg", "tokens", "kept")} == {
        key: summarise(table, cases)[key] for key in ("verdicts", "ndcg", "tokens", "kept")
    }


def test_refusals_of_what_is_left_open_do_not_end_a_distillation_that_goes_on(
    agent, films, tmp_path
):
    with teacher_server() as server:
        distil(agent, films, tmp_path / "j", server)
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    (tmp_path / "j").write_text("".join(lines[:-6]))
    with teacher_server(["HTTP 400"] * 4) as server:
        table, distillation = distil(agent, films, tmp_path / "j", server, concurrency=1)
    assert distillation.teacher.usage.faults["HTTP 400"] == 4 and table.num_rows > USERS
    assert distillation.unanswered.total() == 4


def test_a_reflection_whose_follow_up_got_no_answer_is_not_rethought_for_it(agent, films, tmp_path):
    with teacher_server() as server:
        distil(agent, films, tmp_path / "j", server)
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    follow_up = max(n for n, line in enumerate(lines) if json.loads(line)["text"].startswith("1. "))
    (tmp_path / "j").write_text("".join(lines[:follow_up] + lines[follow_up + 1 :]))
    with teacher_server(["HTTP 400"]) as server:
        table, distillation = distil(agent, films, tmp_path / "j", server)
        assert len(server.seen) == 1
    assert distillation.unanswered == {"rank again": 1}
    assert table["verdict"].to_pylist().count(NO_ANSWER) == 1

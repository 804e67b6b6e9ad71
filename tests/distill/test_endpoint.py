"""A teacher behind HTTP: its answers are read, and its failures cost tries, never the run."""

import json
import time
from dataclasses import replace

import pytest

from starec_ray.agent.tasks import SummarizeTask
from starec_ray.distill.endpoint import EndpointSettings, EndpointTeacher
from starec_ray.distill.teachers import Answer, Question
from starec_ray.errors import ConfigError
from tests.distill.server import BROKEN, FAULTS, SLOW_S, teacher_server


def question(number: int) -> Question:
    messages = [
        {"role": "system", "content": "Summarize."},
        {"role": "user", "content": f"User: {number}\n+ Heat"},
    ]
    return Question(SummarizeTask(f"u{number}/0"), messages, seed=7)


def ask(url: str, questions: list[Question], **settings) -> tuple[EndpointTeacher, list[Answer]]:
    quick = {"longest_wait_s": 0.05, "timeout_s": SLOW_S / 3} | settings
    teacher = EndpointTeacher(EndpointSettings(base_url=url, model="small", **quick))
    answers: dict[str, Answer] = {}
    teacher.answer(questions, lambda q, a: answers.__setitem__(q.task.case_id, a))
    return teacher, [answers[case_id] for case_id in sorted(answers)]


@pytest.mark.parametrize("reasoning", ["inline", "reasoning_content", "reasoning"])
def test_thoughts_are_kept_apart_whichever_way_they_come(reasoning):
    with teacher_server(reasoning=reasoning) as server:
        teacher, [answer] = ask(server.url, [question(1)])
    assert answer == Answer("Likes Heat.", "The latest was liked a lot.", 50, 10)
    assert server.seen[0]["model"] == "small" and server.seen[0]["seed"] == 7
    assert (teacher.usage.requests, teacher.usage.answers, teacher.usage.tokens) == (1, 1, 60)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_costs_a_try(fault):
    with teacher_server([fault, fault]) as server:
        teacher, answers = ask(server.url, [question(1)], concurrency=1)
    assert [answer.text for answer in answers] == ["Likes Heat."]
    assert teacher.usage.requests == 3
    assert sum(teacher.usage.faults.values()) == 2
    assert dict(teacher.usage.faults) == {fault: 2}
    assert json.loads(json.dumps(teacher.usage.plain()))["faults"] == {fault: 2}


@pytest.mark.parametrize("body", BROKEN)
def test_whatever_comes_in_place_of_a_completion_costs_a_try(body):
    with teacher_server([body]) as server:
        teacher, answers = ask(server.url, [question(1)])
    assert [answer.text for answer in answers] == ["Likes Heat."]
    assert dict(teacher.usage.faults) == {"no completion": 1}


def test_a_question_that_is_refused_is_left_and_the_others_are_answered():
    with teacher_server(["", *["HTTP 400"] * 3]) as server:
        teacher, answers = ask(server.url, [question(n) for n in range(5)], concurrency=1)
    assert len(answers) == 2 and len(server.seen) == 5
    assert teacher.usage.faults == {"HTTP 400": 3}


def test_an_endpoint_that_refuses_the_first_requests_ends_it_with_what_it_says():
    refused = pytest.raises(
        ConfigError, match=r"refuses the requests themselves, HTTP 400: .*not now"
    )
    with teacher_server(["HTTP 400"] * 50) as server, refused:
        ask(server.url, [question(n) for n in range(20)], concurrency=2)
    assert len(server.seen) < 10


def test_a_grammar_goes_along_as_the_server_knows_it_beside_other_fields():
    asked = replace(question(1), grammar='root ::= "a"')
    with teacher_server() as server:
        ask(server.url, [asked, question(2)], concurrency=1, extra_body={"top_k": 5})
    told = [request.get("structured_outputs") for request in server.seen]
    assert told == [{"grammar": 'root ::= "a"'}, None]
    assert [request["top_k"] for request in server.seen] == [5, 5]


def test_a_question_that_keeps_failing_is_left_and_the_others_are_answered():
    with teacher_server(["HTTP 500"] * 3) as server:
        teacher, answers = ask(server.url, [question(n) for n in range(4)], concurrency=1, tries=3)
    assert len(answers) == 3
    assert teacher.usage.answers == 3 and teacher.usage.faults == {"HTTP 500": 3}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_ends_it_at_once(status):
    refused = pytest.raises(ConfigError, match="refuses model 'small' with the key in")
    with teacher_server([f"HTTP {status}"] * 50) as server, refused:
        ask(server.url, [question(n) for n in range(20)], concurrency=2)
    assert len(server.seen) < 10


def test_no_server_at_all_leaves_the_questions_open():
    with teacher_server() as server:
        url = server.url
    teacher, answers = ask(url, [question(1)], tries=2)
    assert answers == [] and teacher.usage.faults == {"connection lost": 2}


def test_no_more_requests_run_at_a_time_than_allowed():
    with teacher_server(["timeout"] * 6) as server:
        ask(server.url, [question(n) for n in range(6)], concurrency=3, timeout_s=2 * SLOW_S)
    assert server.most_at_once == 3


def test_the_rate_is_kept():
    with teacher_server() as server:
        start = time.monotonic()
        ask(server.url, [question(n) for n in range(4)], requests_per_minute=600)
        assert time.monotonic() - start >= 0.29
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("budget", "answered"), [({"budget_requests": 2}, 2), ({"budget_tokens": 61}, 2)]
)
def test_a_spent_budget_stops_it_cleanly(budget, answered):
    with teacher_server() as server:
        teacher, answers = ask(server.url, [question(n) for n in range(5)], concurrency=1, **budget)
    assert len(answers) == len(server.seen) == answered
    assert teacher.usage.budget_spent

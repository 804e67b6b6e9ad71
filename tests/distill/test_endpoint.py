"""A teacher behind HTTP: its answers are read, and its failures cost tries, never the run."""

import json
import time
from dataclasses import replace
from unittest.mock import Mock

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion
from tenacity import RetryCallState

from starec_ray.agent.tasks import SummarizeTask
from starec_ray.distill.endpoint import EndpointTeacher
from starec_ray.distill.settings import EndpointSettings
from starec_ray.distill.teachers import CUT_OFF, Answer, Question
from starec_ray.errors import ConfigError
from tests.distill.server import BROKEN, FAULTS, SLOW_S, teacher_server


def question(number: int) -> Question:
    messages = [
        {"role": "system", "content": "Summarize."},
        {"role": "user", "content": f"User: {number}\n+ Heat"},
    ]
    return Question(SummarizeTask(f"u{number}/0"), messages, seed=7)


def ask(url: str, questions: list[Question], **settings) -> tuple[EndpointTeacher, list[Answer]]:
    quick = {"longest_wait_s": 0.05, "timeout_s": 20.0} | settings
    teacher = EndpointTeacher(EndpointSettings(base_url=url, model="small", **quick))
    answers: dict[str, Answer] = {}
    teacher.answer(questions, lambda q, a: answers.__setitem__(q.task.case_id, a))
    return teacher, [answers[case_id] for case_id in sorted(answers)]


@pytest.mark.parametrize("reasoning", ["inline", "parts", "reasoning_content", "reasoning"])
def test_thoughts_are_kept_apart_whichever_way_they_come(reasoning):
    with teacher_server(reasoning=reasoning) as server:
        teacher, [answer] = ask(server.url, [question(1)])
    assert answer == Answer("Likes Heat.", "The latest was liked a lot.", 50, 10)
    assert server.seen[0]["model"] == "small" and server.seen[0]["seed"] == 7
    assert (teacher.usage.requests, teacher.usage.answers, teacher.usage.tokens) == (1, 1, 60)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_costs_a_try(fault):
    with teacher_server([fault, fault]) as server:
        deadline = {"timeout_s": SLOW_S / 3} if fault == "timeout" else {}
        teacher, answers = ask(server.url, [question(1)], concurrency=1, **deadline)
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


def test_thoughts_that_use_up_all_tokens_are_told_as_such_and_not_paid_for_twice():
    with teacher_server([CUT_OFF]) as server:
        teacher, answers = ask(server.url, [question(1), question(2)], concurrency=1)
    assert len(answers) == 1 and len(server.seen) == 2
    assert teacher.usage.faults == {CUT_OFF: 1}


def test_what_no_file_takes_is_replaced_and_counts_beyond_reason_are_none():
    answer = EndpointTeacher(EndpointSettings("", "small"))._read(
        ChatCompletion.model_validate(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "small",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "Likes \ud800."},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 2**40, "completion_tokens": -1, "total_tokens": 0},
            }
        )
    )
    assert answer == Answer("Likes ?.", "", 0, 0)


@pytest.mark.parametrize(
    ("asked", "seconds"), [("2.5", 2.5), ("90", 60.0), ("²", None), ("tomorrow", None), ("", None)]
)
def test_it_waits_as_long_as_the_endpoint_asks_for_else_twice_as_long_each_time(asked, seconds):
    request = httpx.Request("POST", "http://host")
    response = httpx.Response(429, headers={"Retry-After": asked.encode()}, request=request)
    error = openai.RateLimitError("not now", response=response, body=None)
    waits = []
    for attempt in range(1, 9):
        state = RetryCallState(Mock(), None, (), {})
        state.attempt_number = attempt
        state.set_exception((type(error), error, None))
        waits.append(EndpointTeacher(EndpointSettings("", "small"))._wait(state))
    if seconds is not None:
        assert waits == [seconds] * 8
    else:
        assert all(0 <= wait <= min(2**n, 60) for n, wait in enumerate(waits))


def test_the_key_is_read_from_the_variable(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "secret")
    with teacher_server() as server:
        ask(server.url, [question(1)], key_variable="TEACHER_KEY")
    assert server.keys == ["Bearer secret"]


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


@pytest.mark.parametrize(
    ("extra", "fields"),
    [
        ({}, {"temperature": 0.6, "seed": 7, "max_tokens": 2048}),
        (
            {"max_completion_tokens": 99},
            {"temperature": 0.6, "seed": 7, "max_completion_tokens": 99},
        ),
        ({"temperature": None, "seed": 8}, {"seed": 8, "max_tokens": 2048}),
    ],
)
def test_extra_fields_take_the_place_of_others_and_null_leaves_one_out(extra, fields):
    with teacher_server() as server:
        ask(server.url, [question(1)], extra_body=extra, max_tokens=2048)
    [request] = server.seen
    assert {k: v for k, v in request.items() if k not in ("model", "messages")} == fields


def test_a_question_that_keeps_failing_is_left_and_the_others_are_answered():
    with teacher_server(["HTTP 500"] * 3) as server:
        teacher, answers = ask(server.url, [question(n) for n in range(4)], concurrency=1, tries=3)
    assert len(answers) == 3
    assert teacher.usage.answers == 3 and teacher.usage.faults == {"HTTP 500": 3}


@pytest.mark.parametrize("status", [401, 402, 403, 404])
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
        ask(server.url, [question(n) for n in range(6)], concurrency=3)
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


def test_a_spent_budget_waits_for_no_slot_of_the_rate():
    with teacher_server() as server:
        start = time.monotonic()
        slow = {"requests_per_minute": 60, "budget_requests": 1}
        _, answers = ask(server.url, [question(n) for n in range(40)], concurrency=2, **slow)
        assert time.monotonic() - start < 10  # forty slots are forty seconds
    assert len(answers) == 1

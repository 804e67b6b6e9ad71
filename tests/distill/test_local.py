"""A teacher in real vLLM, run by Ray Data on a real Ray."""

import threading
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from starec_ray.agent.tasks import SummarizeTask
from starec_ray.cli import app
from starec_ray.distill.local import TOO_LONG, LocalTeacher, in_time
from starec_ray.distill.settings import LocalSettings
from starec_ray.distill.teachers import CUT_OFF, Answer, Question
from starec_ray.errors import ConfigError, DeadlineError
from starec_ray.models.tokens import prompt_ids
from tests.small_world import NAMES

pytestmark = pytest.mark.engine


def question(number: int, words: int = 3, grammar: str = "") -> Question:
    text = " ".join([NAMES[number]] * (words + number))
    messages = [{"role": "system", "content": "Summarize."}, {"role": "user", "content": text}]
    return Question(SummarizeTask(f"u{number}/{words}"), messages, 7, grammar)


def test_each_question_is_answered_as_the_model_would_in_its_form_and_one_too_long_is_left(
    echo_model, ray_cluster
):
    teacher = LocalTeacher(
        LocalSettings(
            str(echo_model),
            temperature=0.0,
            max_tokens=8,
            cpus_per_engine=1,
            batch_size=2,
            engine_settings={"max_model_len": 512, "max_num_seqs": 8, "dtype": "float32"},
        )
    )
    questions = [*(question(number) for number in (1, 2, 3)), question(0, words=2000)]
    questions.append(question(0, words=5, grammar='root ::= "Yes" | "No"'))
    answers: dict[str, Answer] = {}
    teacher.answer(questions, lambda q, a: answers.__setitem__(q.task.case_id, a))

    assert answers.pop("u0/5").text in ("Yes", "No")
    tokenizer = AutoTokenizer.from_pretrained(echo_model)
    model = AutoModelForCausalLM.from_pretrained(echo_model, dtype=torch.float32)
    empty: Counter[str] = Counter()
    for asked in questions[:3]:
        ids = prompt_ids(tokenizer, asked.messages)
        told = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
        # vLLM keeps bytes to itself that aren't a letter yet.
        text = tokenizer.decode(told, skip_special_tokens=True).rstrip("\ufffd").strip()
        if not text:
            empty[CUT_OFF if len(told) == 8 else "empty answer"] += 1
            continue
        answer = answers.pop(asked.task.case_id)
        assert answer.text == text
        assert (answer.prompt_tokens, answer.reply_tokens) == (len(ids), len(told))
    assert not answers and empty.total() < 3
    assert teacher.usage.faults == empty + Counter({TOO_LONG: 1})
    assert (teacher.usage.requests, teacher.usage.answers) == (5, 4 - empty.total())


def test_under_other_engine_settings_a_question_is_asked_again(
    films, echo_model, ray_cluster, tmp_path, monkeypatch
):
    asked: list[int] = []

    def answers(teacher: LocalTeacher, rows):
        asked.append(len(rows))
        for row in rows:
            told = {"generated_text": "<think>So it is.</think>Likes Drama."}
            yield {**row, **told, "num_input_tokens": 9, "num_generated_tokens": 9}

    monkeypatch.setattr(LocalTeacher, "_answers", answers)

    def questions_with(*options: str) -> int:
        asked.clear()
        command = ["--data", str(films), "--out", str(tmp_path), "--teacher", str(echo_model)]
        command += ["--users", "2", "--gpus-per-engine", "0", "--cpus-per-engine", "1"]
        command += ["--rethinks", "0"]
        result = CliRunner().invoke(app, ["distill", *command, *options])
        assert result.exit_code == 0, result.output
        return sum(asked)

    questions = questions_with()
    assert questions > 0
    assert questions_with("--popularity-weight", "0.9") == 0
    assert questions_with("--engine-settings", '{"quantization": "fp8"}') == questions
    assert questions_with("--engine-settings", '{"quantization": "fp8"}') == 0
    assert questions_with("--temperature", "0.1") == questions
    assert questions_with("--max-tokens", "8192") == questions


def test_engines_that_fall_silent_end_the_wait_and_those_that_fail_say_why():
    def answers(then: Callable[[], None]):
        yield {"number": 1}
        then()

    assert list(in_time(answers(lambda: None), 60, "engines")) == [{"number": 1}]
    never = threading.Event()
    silent = in_time(answers(lambda: never.wait() and None), 0.1, "engines of small")
    assert next(silent) == {"number": 1}
    with pytest.raises(DeadlineError, match=r"engines of small got no further for 0\.1 s"):
        next(silent)

    def fail() -> None:
        raise ConfigError("no place")

    with pytest.raises(ConfigError, match="no place"):
        list(in_time(answers(fail), 60, "engines"))


def test_engines_that_the_cluster_can_never_place_are_refused_at_once(tiny_model, ray_cluster):
    with pytest.raises(ConfigError, match=r"300 CPUs are wanted and .* --cpus-per-engine"):
        LocalTeacher(LocalSettings(str(tiny_model), engines=3, cpus_per_engine=100))
    with pytest.raises(ConfigError, match=r"2 GPUs are wanted and the cluster has 0: "):
        LocalTeacher(LocalSettings(str(tiny_model), gpus_per_engine=2))

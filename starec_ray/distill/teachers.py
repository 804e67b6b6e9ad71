"""What a teacher is asked and answers, whoever it is."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starec_ray.agent.formats import ReplyFormat
from starec_ray.agent.prompts import Messages
from starec_ray.agent.tasks import RankTask, ReflectTask, SummarizeTask, Task
from starec_ray.agent.teacher import TemplateTeacher
from starec_ray.data.dataset import Dataset

CUT_OFF = "cut off by --max-tokens"  # among the causes of failed requests


@dataclass(frozen=True)
class Question:
    """One request to a teacher: a task as chat messages; with a grammar, the form of its reply."""

    task: Task
    messages: Messages
    seed: int
    grammar: str = ""

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of the messages, hexadecimal."""
        text = json.dumps(self.messages, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def key(self) -> str:
        """What its answer is kept under: the same messages and seed are asked once."""
        return hashlib.sha256(f"{self.seed}\n{self.prompt_hash}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Answer:
    """What came back. `reasoning` is the teacher's thinking, `text` the answer without it."""

    text: str
    reasoning: str
    prompt_tokens: int
    reply_tokens: int


@dataclass
class Usage:
    """What a teacher was asked in this process."""

    requests: int = 0
    answers: int = 0
    tokens: int = 0  # of prompts and replies
    faults: Counter[str] = field(default_factory=Counter)  # requests that failed, by cause
    budget_spent: bool = False
    answers_before: int = 0  # of earlier processes: they show that the requests are sound

    def plain(self) -> dict[str, Any]:
        """As JSON holds it. Not `asdict`, which makes a counter count its own entries."""
        return vars(self) | {"faults": dict(self.faults)}


Record = Callable[[Question, Answer], None]


class Teacher(Protocol):
    """Answers questions, in any order, and calls `record` for each answer as it comes.

    A question that can't be answered is left out, its cause counted in `usage`; so are those for
    which a budget had nothing left.

    Attributes:
        how: what of its settings changes its answers, as JSON holds it: where that is another, what
            was answered is asked anew.
    """

    name: str
    usage: Usage

    @property
    def how(self) -> dict[str, Any]: ...

    def answer(self, questions: Sequence[Question], record: Record) -> None: ...


class TemplateAnswers:
    """The template teacher, speaking as the others do: in replies that have to be read."""

    name = "template"

    def __init__(
        self, dataset: Dataset, reply_format: ReplyFormat, popularity_weight: float
    ) -> None:
        self.usage = Usage()
        self.how = {"popularity_weight": popularity_weight}
        self._dataset = dataset
        self._format = reply_format
        self._teacher = TemplateTeacher(
            dataset, ("tags", "people", "year", "popularity"), popularity_weight
        )

    def answer(self, questions: Sequence[Question], record: Record) -> None:
        for question in questions:
            self.usage.requests += 1
            self.usage.answers += 1
            record(question, self._answer(question.task))

    def _answer(self, task: Task) -> Answer:
        if isinstance(task, RankTask):
            told = self._teacher.rank(task)
            candidates = self._dataset.case(task.case_id).candidates
            place = {item.item_id: index for index, item in enumerate(candidates)}
            order = [place[item_id] for item_id in told["ranking"]]
            text = self._format.write(candidates, order, told["grades"])
        elif isinstance(task, ReflectTask):
            told = self._teacher.reflect(task)
            text = told["summary"]
        else:
            assert isinstance(task, SummarizeTask)
            told = self._teacher.summarize(task)
            text = told["summary"]
        return Answer(text, told["rationale"], 0, 0)

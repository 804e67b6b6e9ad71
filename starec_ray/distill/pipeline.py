"""A teacher plays the agent's loop on training users; every answer is judged and kept.

summarize the history; rank → feedback → reflect → rank again. A flawed answer goes back with its
fault named. The table that comes of it is a function of the data, the settings and the answers:
what the journal holds isn't asked again.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from starec_ray.agent.agent import Agent
from starec_ray.agent.item_text import without_brackets
from starec_ray.agent.prompts import Messages
from starec_ray.agent.tasks import RankTask, ReflectTask, SummarizeTask, Task
from starec_ray.distill.guided import reply_grammar
from starec_ray.distill.journal import Journal
from starec_ray.distill.screening import (
    NO_ANSWER,
    Judgement,
    judge_follow_up,
    judge_ranking,
    judge_summary,
    rethink,
)
from starec_ray.distill.settings import DistillSettings
from starec_ray.distill.teachers import Answer, Question, Teacher
from starec_ray.errors import DataError
from starec_ray.metrics import ndcg_at
from starec_ray.progress import phase
from starec_ray.schemas import DISTILLED
from starec_ray.training.template_traces import trace_columns
from starec_ray.training.traces import KEPT

CHARACTERS_A_TOKEN = 3  # a careful guess: the teacher's tokenizer isn't known here


@dataclass(frozen=True)
class Attempt:
    """One answer to one task, read and judged."""

    question: Question
    answer: Answer
    reading: dict[str, Any]
    score: float | None
    judgement: Judgement


# The attempts at one task, the first answer first.
Chain = list[Attempt]
Judge = Callable[[Sequence[tuple[Task, dict[str, Any]]]], list[tuple[float | None, Judgement]]]


def choose_cases(agent: Agent, settings: DistillSettings) -> list[str]:
    """The first case of each of `settings.users` training users, in a seeded order.

    Raises:
        DataError: if no user has a later case, which reflections are judged by.
        ConfigError: if the prompt of a ranking wouldn't fit: known before anything is asked.
    """
    dataset = agent.dataset
    first = [c for c in dataset.case_ids("train", 0) if dataset.next_case_id(c)]
    if not first:
        raise DataError(
            "no training user has a second case, which reflections are judged by: prepare the "
            "data with --train-users and with --rounds 2 or more."
        )
    order = np.random.default_rng(settings.seed).permutation(len(first))
    chosen = [first[index] for index in order[: settings.users]]
    follow_ups = [dataset.next_case_id(case_id) for case_id in chosen]
    agent.check_room([*chosen, *filter(None, follow_ups)], _count_tokens)
    return chosen


@dataclass
class Distillation:
    """The loop over training users.

    Args:
        agent: writes the prompts and reads the replies.
        cases: the users' first ones, see `choose_cases`.
        targets: case id → item id that the user chose; the teacher sees it as feedback alone.

    Attributes:
        unanswered: step of the loop → questions that were left open.
    """

    agent: Agent
    cases: Sequence[str]
    targets: dict[str, str]
    teacher: Teacher
    journal: Journal
    settings: DistillSettings
    unanswered: Counter[str] = field(default_factory=Counter)
    _follow_ups: list[tuple[Task, Attempt]] = field(default_factory=list)

    def run(self) -> pa.Table:
        """All traces, kept or not, as `schemas.DISTILLED`."""
        agent, cases = self.agent, self.cases
        summaries = [SummarizeTask(case_id) for case_id in cases]
        rankings = [RankTask(case_id, agent.initial_summary(case_id)) for case_id in cases]
        rows = self._rows("summarize", self._chains("summarize", summaries, self._judge_summaries))
        ranked = self._chains("rank", rankings, self._judge_rankings)
        rows += self._rows("rank", ranked)
        reflections = self._reflections(ranked)
        rows += self._rows("reflect", self._chains("reflect", reflections, self._judge_reflections))
        rows += [self._row("rank", attempt, 0, None) for _, attempt in self._follow_ups]
        return pa.Table.from_pylist(rows, schema=DISTILLED)

    def _reflections(self, ranked: Sequence[Chain]) -> list[Task]:
        """A reflection on each real mistake: a first ranking that missed what the user chose."""
        tasks: list[Task] = []
        for chain in ranked:
            if not chain or chain[0].reading["malformed"]:
                continue
            task, predicted = chain[0].question.task, tuple(chain[0].reading["ranking"])
            chosen = self.targets[task.case_id]
            if predicted[0] != chosen:
                tasks.append(ReflectTask(task.case_id, task.summary, predicted, chosen))
        return tasks

    def _chains(self, name: str, tasks: Sequence[Task], judge: Judge) -> list[Chain]:
        """Asks for every task, then again for each answer that was flawed."""
        chains: list[Chain] = [[] for _ in tasks]
        asked = list(range(len(tasks)))
        for attempt in range(self.settings.rethinks + 1):
            if not asked:
                break
            questions = [self._question(tasks[index], chains[index]) for index in asked]
            answers = self._ask(f"{name}, rethink {attempt}" if attempt else name, questions)
            answered = [
                (index, question, answer)
                for index, question, answer in zip(asked, questions, answers, strict=True)
                if answer is not None
            ]
            readings = [self._read(tasks[index], answer) for index, _, answer in answered]
            judged = judge(
                [(tasks[i], reading) for (i, *_), reading in zip(answered, readings, strict=True)]
            )
            for (index, question, answer), reading, (score, judgement) in zip(
                answered, readings, judged, strict=True
            ):
                chains[index].append(Attempt(question, answer, reading, score, judgement))
            asked = [i for i, *_ in answered if chains[i][-1].judgement.fault]
        return chains

    def _ask(self, name: str, questions: Sequence[Question]) -> list[Answer | None]:
        """An answer for each question, from the journal where it was asked before."""
        self.teacher.usage.answers_before = len(self.journal) - self.teacher.usage.answers
        unanswered = {q.key: q for q in questions if not self.journal.get(q)}
        if unanswered and not self.teacher.usage.budget_spent:
            with phase(name, len(unanswered)) as progress:

                def record(question: Question, answer: Answer) -> None:
                    self.journal.record(question, answer)
                    progress.advance()

                self.teacher.answer(list(unanswered.values()), record)
        answers = [self.journal.get(question) for question in questions]
        if missing := answers.count(None):
            self.unanswered[name] += missing
        return answers

    def _question(self, task: Task, chain: Chain) -> Question:
        messages = self.agent.prompt(task, _count_tokens).messages
        if chain:
            last = chain[-1]
            messages = rethink(messages, _as_written(last.answer), last.judgement.fault)
        grammar = reply_grammar(self.agent, task) if self.settings.guided else ""
        return Question(task, messages, self.settings.seed, grammar)

    def _read(self, task: Task, answer: Answer) -> dict[str, Any]:
        # The student learns the rationale: whole, but no control token with it.
        rationale = " ".join(without_brackets(answer.reasoning).split())
        return self.agent.read(task, answer.text) | {"rationale": rationale}

    # --- judges: (task, reading) pairs → scores and judgements -------------------------------

    def _judge_rankings(
        self, read: Sequence[tuple[Task, dict[str, Any]]]
    ) -> list[tuple[float | None, Judgement]]:
        judged: list[tuple[float | None, Judgement]] = []
        for task, reading in read:
            target = self.targets[task.case_id]
            score = self._score(reading, target)
            names = self._names(task.case_id)
            least = self.settings.min_score
            judgement = judge_ranking(reading, names, target, score=score, min_score=least)
            judged.append((score, judgement))
        return judged

    def _judge_summaries(
        self, read: Sequence[tuple[Task, dict[str, Any]]]
    ) -> list[tuple[float | None, Judgement]]:
        dataset = self.agent.dataset
        return [
            (None, judge_summary(reading, dataset.case(task.case_id))) for task, reading in read
        ]

    def _judge_reflections(
        self, read: Sequence[tuple[Task, dict[str, Any]]]
    ) -> list[tuple[float | None, Judgement]]:
        """By form, then by the follow-up ranking, which becomes a trace of its own."""
        dataset = self.agent.dataset
        judged = self._judge_summaries(read)
        sound = [index for index, (_, judgement) in enumerate(judged) if judgement.verdict == KEPT]
        follow_ups: list[Task] = []
        for index in sound:
            task, reading = read[index]
            next_case = dataset.next_case_id(task.case_id)
            assert next_case is not None
            follow_ups.append(RankTask(next_case, reading["summary"]))
        questions = [self._question(task, []) for task in follow_ups]
        answers = self._ask("rank again", questions)
        for index, task, question, answer in zip(
            sound, follow_ups, questions, answers, strict=True
        ):
            if answer is None:
                judged[index] = (None, Judgement(NO_ANSWER))
                continue
            reading = self._read(task, answer)
            [(score, judgement)] = self._judge_rankings([(task, reading)])
            self._follow_ups.append((task, Attempt(question, answer, reading, score, judgement)))
            judged[index] = (
                score,
                judge_follow_up(
                    reading["ranking"],
                    self.targets[task.case_id],
                    score=score or 0.0,
                    min_score=self.settings.min_score,
                ),
            )
        return judged

    def _score(self, reading: dict[str, Any], target: str) -> float:
        """NDCG over all places; a malformed ranking's is 0."""
        if reading["malformed"]:
            return 0.0
        ranking = reading["ranking"]
        return float(ndcg_at([ranking.index(target) + 1], len(ranking))[0])

    def _names(self, case_id: str) -> dict[str, str]:
        candidates = self.agent.dataset.case(case_id).candidates
        names = self.agent.writer.reply_format.names(candidates)
        return {item.item_id: name for item, name in zip(candidates, names, strict=True)}

    # --- rows --------------------------------------------------------------------------------

    def _rows(self, kind: str, chains: Sequence[Chain]) -> list[dict[str, Any]]:
        rows = []
        for chain in chains:
            flawed = None
            for number, attempt in enumerate(chain):
                rows.append(self._row(kind, attempt, number, flawed))
                flawed = rows[-1]["trace_id"]
        return rows

    def _row(self, kind: str, attempt: Attempt, number: int, flawed: str | None) -> dict[str, Any]:
        question, answer, reading = attempt.question, attempt.answer, attempt.reading
        told = {name: reading[name] for name in ("rationale", "ranking", "summary")}
        columns = trace_columns(kind, question.task, told, self.teacher.name)
        return {
            **columns,
            # The same case may be ranked with several summaries: the prompt tells them apart.
            "trace_id": f"{columns['trace_id']}/{question.key[:8]}",
            "verdict": attempt.judgement.verdict,
            "attempt": number,
            "rethinks": flawed,
            "score": attempt.score,
            "reply": answer.text,
            "prompt_hash": question.prompt_hash,
            "seed": question.seed,
            "prompt_tokens": answer.prompt_tokens,
            "reply_tokens": answer.reply_tokens,
        }


def _count_tokens(messages: Messages) -> int:
    return sum(len(message["content"]) for message in messages) // CHARACTERS_A_TOKEN


def _as_written(answer: Answer) -> str:
    return f"<think>{answer.reasoning}</think>\n{answer.text}" if answer.reasoning else answer.text

"""The agent: turns tasks into prompts and replies into rankings or summaries. Knows no engine."""

import heapq
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starec_ray.agent.formats import FORMATS, MAX_REPLY
from starec_ray.agent.item_text import one_line
from starec_ray.agent.memory import MAX_SUMMARY, Memory, digest
from starec_ray.agent.prompts import Messages, PromptWriter
from starec_ray.agent.reply_form import ReplyForm
from starec_ray.agent.tasks import RankTask, ReflectTask, SummarizeTask, Task
from starec_ray.data.dataset import Case, Dataset
from starec_ray.errors import ConfigError

CountTokens = Callable[[Messages], int]
PROMPTS_COUNTED = 20  # of the longest ones by each guess, for by tokens another may be the longest
WORD = re.compile(r"[^\W_]{2}")
# "# Summary", "**Summary**", "Here is the new summary:".
HEADING = re.compile(r"#{1,6}\s.*|.*:[*_]*|(\*\*|__)[^*_]*\1")
REMEDY = (
    "Raise max_model_len, show fewer item_attributes, or prepare the data with fewer negatives."
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Chat messages, and what was left out to fit the window: how many of the oldest history
    items, and whether a part of the summary."""

    messages: Messages
    history_shed: int
    summary_cut: bool = False


class Agent:
    """Fast and slow thinking over the cases of one dataset.

    Args:
        dataset: catalog, users and cases (no targets).
        writer: writes the prompts in one reply format.
        history_shown: at most so many of the newest history items stand in a prompt; older
            ones live on in the preference summary.
        max_prompt_tokens: the model's window less the room for a reply.
        constrained: rankings keep to the blanks of their reply format.
        remedy: what helps where a prompt doesn't fit, in the words of who set this up.
    """

    def __init__(
        self,
        dataset: Dataset,
        writer: PromptWriter,
        history_shown: int,
        max_prompt_tokens: int,
        constrained: bool,
        remedy: str = REMEDY,
    ) -> None:
        self.dataset = dataset
        self.writer = writer
        self.history_shown = history_shown
        self.max_prompt_tokens = max_prompt_tokens
        self.constrained = constrained
        self.remedy = remedy

    @classmethod
    def from_config(cls, config: Any, dataset: Dataset) -> "Agent":
        """Reads reply_format, item_attributes, think_before_ranking, history_shown,
        max_model_len, max_rank_tokens, max_reflect_tokens and constrained_decoding of
        `config`."""
        writer = PromptWriter(
            FORMATS[config.reply_format],
            config.item_attributes,
            dataset.most_popular,
            config.think_before_ranking,
        )
        reply_room = max(config.max_rank_tokens, config.max_reflect_tokens)
        return cls(
            dataset,
            writer,
            config.history_shown,
            config.max_model_len - reply_room,
            config.constrained_decoding,
        )

    def initial_summary(self, case_id: str) -> str:
        """The preference summary before any reflection: a digest of the whole history."""
        return digest(self.dataset.case(case_id).history)

    def prompt(self, task: Task, count_tokens: CountTokens) -> Prompt:
        """The messages for a task, the oldest history shed first until they fit; where all of it
        is shed, the summary is cut.

        Raises:
            ConfigError: if they don't fit without either; candidates are never shed.
        """
        case = self.dataset.case(task.case_id)
        memory = Memory.of(case, task.summary)
        at_hand = min(self.history_shown, len(memory.history))
        for shown in range(at_hand, -1, -1):
            messages = self._messages(task, case, memory.latest(shown))
            if count_tokens(messages) <= self.max_prompt_tokens:
                return Prompt(messages, at_hand - shown)
        # A summary that was sampled may be of any length: no reason to end a run.
        memory = memory.latest(0)
        while memory.summary:
            memory = replace(memory, summary=memory.summary[: len(memory.summary) // 2].rstrip())
            messages = self._messages(task, case, memory)
            if count_tokens(messages) <= self.max_prompt_tokens:
                return Prompt(messages, at_hand, summary_cut=True)
        raise ConfigError(
            f"case {task.case_id}: the prompt takes {count_tokens(messages)} tokens without any "
            f"history, but only {self.max_prompt_tokens} fit. {self.remedy}"
        )

    def shortest_prompt(self, case_id: str) -> Messages:
        """Of a ranking without history and summary: what has to fit, whatever else is shed."""
        case = self.dataset.case(case_id)
        return self._messages(RankTask(case_id, ""), case, Memory.of(case, "").latest(0))

    def check_room(self, case_ids: Sequence[str], count_tokens: CountTokens) -> None:
        """Counts the tokens of the longest of the shortest prompts.

        Raises:
            ConfigError: if one of them doesn't fit.
        """

        texts = {c: "".join(m["content"] for m in self.shortest_prompt(c)) for c in case_ids}
        likely = {
            case_id
            for guess in (len, _most_tokens)
            for case_id in heapq.nlargest(PROMPTS_COUNTED, texts, key=lambda c: guess(texts[c]))
        }
        for case_id in sorted(likely):
            shown = tuple(item.item_id for item in self.dataset.case(case_id).candidates)
            # Of a short list the reflection is the longer one.
            for task in (RankTask(case_id, ""), ReflectTask(case_id, "", shown, shown[0])):
                self.prompt(task, count_tokens)

    def reply_form(self, task: Task, tokenizer: Any) -> ReplyForm | None:
        """What constrained decoding keeps a reply to; None where it is free."""
        if not self.constrained or not isinstance(task, RankTask):
            return None
        candidates = self.dataset.case(task.case_id).candidates
        return ReplyForm.of(self.writer.reply_format.blanks(candidates), tokenizer)

    @property
    def grades_candidates(self) -> bool:
        """Whether a constrained ranking is a grade for each candidate, in the order listed."""
        return self.constrained and self.writer.reply_format.graded

    def read(self, task: Task, reply: str, expected_grades: Sequence[float] = ()) -> dict[str, Any]:
        """A reply's columns of ROLLOUTS, rationale to invented: a str, a list of item ids or None,
        a list of grades or None, a str or None, a bool, three counts. Any text whatever is read,
        none raises.

        With the expected grade of each candidate, in the order listed, these make the ranking
        instead of the grades written: they hold what the model knows between two grades.
        (Expected relevance: Zhuang et al., arXiv 2310.14122.)

        A ranking is malformed unless it is a permutation of the candidates; a reflection or
        summarisation is malformed if it leaves no summary, and then the old summary stays.
        """
        rationale, answer = split_rationale(reply)
        if not isinstance(task, RankTask):
            summary = read_summary(answer)
            return {
                "rationale": rationale,
                "ranking": None,
                "grades": None,
                "summary": summary or task.summary,
                "malformed": not summary,
                "missing": 0,
                "repeated": 0,
                "invented": 0,
            }
        candidates = self.dataset.case(task.case_id).candidates
        reading = self.writer.reply_format.read(answer, candidates)
        order = reading.order
        if reading.whole and len(expected_grades) == len(candidates):
            order = tuple(sorted(range(len(candidates)), key=lambda i: -expected_grades[i]))
        return {
            "rationale": rationale,
            "ranking": [candidates[index].item_id for index in order],
            "grades": reading.grades,
            "summary": None,
            "malformed": not reading.whole,
            "missing": reading.missing,
            "repeated": reading.repeated,
            "invented": reading.invented,
        }

    def _messages(self, task: Task, case: Case, memory: Memory) -> Messages:
        if isinstance(task, RankTask):
            return self.writer.rank(memory, case.candidates)
        if isinstance(task, SummarizeTask):
            return self.writer.summarize(memory)
        place = {item.item_id: index for index, item in enumerate(case.candidates)}
        predicted = [place[item_id] for item_id in task.predicted]
        return self.writer.reflect(memory, case.candidates, predicted, place[task.chosen])


def _most_tokens(text: str) -> float:
    """A guess for tokenizers that know one script: a token for each byte of the others."""
    ascii_characters = len(text.encode("ascii", "ignore"))
    return ascii_characters / 4 + len(text.encode()) - ascii_characters


def split_rationale(reply: str) -> tuple[str, str]:
    """(rationale, answer): the text in the think tags and the text behind them.

    A model that thinks on its own may think once more because it was asked to: the answer stands
    behind the last tag. A rationale that is never closed leaves no answer; without tags there is
    no rationale. An opening tag that the chat template wrote, and the reply lacks, is no fault.
    """
    thoughts, closed, answer = reply.rpartition("</think>")
    if not closed:
        answer, _, thoughts = reply.partition("<think>")
    for tag in ("<think>", "</think>"):
        thoughts = thoughts.replace(tag, " ")
    return thoughts.strip()[:MAX_REPLY], answer.strip()[:MAX_REPLY]


def read_summary(answer: str) -> str:
    """The first line with a word in it that isn't a heading, or else the first with a word,
    cleaned, at most MAX_SUMMARY characters; "" where there is none."""
    cleaned = (one_line(line, MAX_SUMMARY) for line in answer.splitlines())
    lines = [line for line in cleaned if WORD.search(line) and not line.startswith("```")]
    return next((line for line in lines if not HEADING.fullmatch(line)), next(iter(lines), ""))

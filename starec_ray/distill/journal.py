"""Every answer of a teacher, on the disk at once: a stopped distillation goes on from it."""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from starec_ray.distill.teachers import Answer, Question
from starec_ray.errors import ConfigError
from starec_ray.files import append_line, failing_for, locked, whole_lines


class Journal:
    """A file of answers, a JSON line each, under who was asked and the keys of the questions.

    Answers to others stay in the file, and are neither counted nor given. A last line that a crash
    cut off is left out. One process at a time, unless the storage has no locks.

    Args:
        asked: the teacher, and whatever else changes its answers, as text.

    Raises:
        ConfigError: if another process writes it, or it is no journal.
    """

    def __init__(self, path: Path, asked: str) -> None:
        self.path = path
        self._asked = hashlib.sha256(asked.encode()).hexdigest()[:16]
        with ExitStack() as held:
            # A file of its own: each answer is written by opening the journal again.
            lock = held.enter_context(open(path.with_name(f"{path.name}.lock"), "ab"))
            try:
                held.enter_context(locked(lock))
            except BlockingIOError:
                raise ConfigError(f"{path} is in use by another process: wait for it.") from None
            open(path, "ab").close()  # what can't be written is told before anything is asked
            self._answers = self._read()
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, question: Question) -> Answer | None:
        """The answer to a question that was asked before."""
        return self._answers.get(question.key)

    def record(self, question: Question, answer: Answer) -> None:
        """Keeps an answer; it is on the disk when this returns.

        Raises:
            StorageError: the disk doesn't take it.
        """
        with failing_for(self.path, "Make room, then start it again: it goes on from its answers."):
            append_line(self.path, {"asked": self._asked, "key": question.key, **asdict(answer)})
        self._answers[question.key] = answer

    def _read(self) -> dict[str, Answer]:
        answers = {}
        for number, line in enumerate(whole_lines(self.path), start=1):
            try:
                entry = json.loads(line)
                asked, key = entry.pop("asked", None), entry.pop("key")
                answer = Answer(**entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{self.path}, line {number}: not an answer of a teacher ({error!r})."
                ) from error
            if asked == self._asked:
                answers[key] = answer
        return answers

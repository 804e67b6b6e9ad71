"""Every answer of a teacher, on the disk at once: a stopped distillation goes on from it."""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from starec_ray.distill.teachers import Answer, Question
from starec_ray.errors import ConfigError


class Journal:
    """A file of answers, a JSON line each, under the keys of their questions.

    A last line that a crash cut off is dropped when the file is opened. One process at a time.

    Raises:
        ConfigError: if another process writes it, or it is no journal.
    """

    def __init__(self, path: Path, teacher: str) -> None:
        self.path = path
        self._teacher = teacher
        self._file = open(path, "a+b")  # noqa: SIM115 - closed by __exit__
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"{path} is in use by another process: wait for it.") from None
        self._answers = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def answers(self) -> list[Answer]:
        """All of them, in the order in which they came."""
        return list(self._answers.values())

    def get(self, question: Question) -> Answer | None:
        """The answer to a question that was asked before."""
        return self._answers.get(question.key(self._teacher))

    def record(self, question: Question, answer: Answer) -> None:
        """Keeps an answer; it is on the disk when this returns."""
        key = question.key(self._teacher)
        line = {
            "key": key,
            "text": answer.text,
            "reasoning": answer.reasoning,
            "prompt_tokens": answer.prompt_tokens,
            "reply_tokens": answer.reply_tokens,
        }
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._answers[key] = answer

    def _read(self) -> dict[str, Answer]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        answers = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                key = entry.pop("key")
                answers[key] = Answer(**entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{self.path}, line {number}: not an answer of a teacher ({error!r})."
                ) from error
        return answers

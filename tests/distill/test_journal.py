"""What a teacher answered is on the disk at once, and read again."""

import pytest

from starec_ray.agent.tasks import SummarizeTask
from starec_ray.distill import journal as module
from starec_ray.distill.journal import Journal
from starec_ray.distill.teachers import Answer, Question
from starec_ray.errors import ConfigError

ANSWER = Answer("Likes Amélie.", "All\nof it.", 12, 3)


def question(text: str = "one", seed: int = 0) -> Question:
    return Question(SummarizeTask("u/0"), [{"role": "user", "content": text}], seed)


def test_answers_are_there_when_the_file_is_opened_again(tmp_path):
    with Journal(tmp_path / "j", "teacher") as journal:
        journal.record(question(), ANSWER)
    with Journal(tmp_path / "j", "teacher") as journal:
        assert journal.get(question()) == ANSWER
        assert journal.get(question("two")) is None
        assert journal.get(question(seed=1)) is None
    with Journal(tmp_path / "j", "another teacher") as journal:
        assert journal.get(question()) is None


def test_an_answer_is_on_the_disk_when_it_is_recorded(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        module.os, "fsync", lambda file: synced.append((tmp_path / "j").read_text())
    )
    with Journal(tmp_path / "j", "teacher") as journal:
        journal.record(question(), ANSWER)
        assert len(synced) == 1 and "Likes Amélie." in synced[0]


def test_a_line_that_a_crash_cut_off_is_dropped_and_written_over(tmp_path):
    path = tmp_path / "j"
    with Journal(path, "teacher") as journal:
        journal.record(question("one"), ANSWER)
        journal.record(question("two"), ANSWER)
    path.write_bytes(path.read_bytes()[:-20])
    with Journal(path, "teacher") as journal:
        assert len(journal) == 1 and journal.get(question("two")) is None
        journal.record(question("three"), ANSWER)
    with Journal(path, "teacher") as journal:
        assert len(journal) == 2 and journal.get(question("three")) == ANSWER


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"text": "a"}', '{"key": "k", "else": 1}'])
def test_a_foreign_file_is_named(tmp_path, line):
    (tmp_path / "j").write_text(line + "\n")
    with pytest.raises(ConfigError, match="line 1: not an answer of a teacher"):
        Journal(tmp_path / "j", "teacher")


def test_two_processes_can_not_write_one_journal(tmp_path):
    with Journal(tmp_path / "j", "teacher"), pytest.raises(ConfigError, match="in use"):
        Journal(tmp_path / "j", "teacher")

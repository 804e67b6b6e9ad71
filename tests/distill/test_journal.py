"""What a teacher answered is on the disk at once, and read again."""

import json
from dataclasses import asdict

import pytest

from starec_ray import files
from starec_ray.agent.tasks import SummarizeTask
from starec_ray.distill.endpoint import EndpointTeacher
from starec_ray.distill.journal import Journal
from starec_ray.distill.settings import EndpointSettings
from starec_ray.distill.teachers import Answer, Question
from starec_ray.errors import ConfigError, StorageError
from tests.distill.server import teacher_server

ANSWER = Answer("Likes Amélie.", "All\nof it.", 12, 3)
OTHER = Answer("Likes anything.", "", 12, 4)


def question(text: str = "one", seed: int = 0) -> Question:
    messages = [{"role": "system", "content": "Summarize."}, {"role": "user", "content": text}]
    return Question(SummarizeTask("u/0"), messages, seed)


def test_answers_are_there_when_the_file_is_opened_again(tmp_path):
    with Journal(tmp_path / "j", "teacher") as journal:
        journal.record(question(), ANSWER)
    with Journal(tmp_path / "j", "teacher") as journal:
        assert journal.get(question()) == ANSWER
        assert journal.get(question("two")) is None
        assert journal.get(question(seed=1)) is None
    with Journal(tmp_path / "j", "another teacher") as journal:
        assert journal.get(question()) is None and len(journal) == 0
        journal.record(question(), OTHER)
        assert journal.get(question()) == OTHER and len(journal) == 1
    with Journal(tmp_path / "j", "teacher") as journal:
        assert journal.get(question()) == ANSWER and len(journal) == 1


def test_an_answer_is_on_the_disk_when_it_is_recorded(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files.os, "fsync", lambda file: synced.append((tmp_path / "j").read_text()))
    with Journal(tmp_path / "j", "teacher") as journal:
        journal.record(question(), ANSWER)
        assert len(synced) == 1 and "Likes Amélie." in synced[0]


def test_what_can_not_be_written_is_told_before_anything_is_asked(tmp_path):
    (tmp_path / "j").symlink_to(tmp_path / "no folder" / "j")
    with pytest.raises(OSError, match="No such file"):
        Journal(tmp_path / "j", "teacher")


def test_a_full_disk_ends_it_with_what_to_do_and_what_was_answered_stays(tmp_path):
    path, aside = tmp_path / "j", tmp_path / "aside"
    with teacher_server([]) as server, Journal(path, "a teacher") as journal:
        teacher = EndpointTeacher(EndpointSettings(server.url, "small", concurrency=1))
        teacher.answer([question()], journal.record)
        path.rename(aside)
        path.symlink_to("/dev/full")
        with pytest.raises(StorageError, match=r"/j can't be written: .*No space.*Make room"):
            teacher.answer([question("two"), question("three")], journal.record)
    aside.replace(path)
    with Journal(path, "a teacher") as journal:
        assert len(journal) == 1 and journal.get(question())


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


def test_lines_that_do_not_say_who_was_asked_are_nobody_s(tmp_path):
    (tmp_path / "j").write_text(json.dumps({"key": question().key, **asdict(ANSWER)}) + "\n")
    with Journal(tmp_path / "j", "teacher") as journal:
        assert journal.get(question()) is None and len(journal) == 0


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"text": "a"}', '{"key": "k", "else": 1}'])
def test_a_foreign_file_is_named(tmp_path, line):
    (tmp_path / "j").write_text(line + "\n")
    for _ in range(2):  # the first one keeps no lock
        with pytest.raises(ConfigError, match="line 1: not an answer of a teacher"):
            Journal(tmp_path / "j", "teacher")


def test_two_processes_can_not_write_one_journal(tmp_path):
    with Journal(tmp_path / "j", "teacher"), pytest.raises(ConfigError, match="in use"):
        Journal(tmp_path / "j", "teacher")

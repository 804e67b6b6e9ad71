"""The command `starec distill`: killed in the middle and started again, or asked otherwise."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from starec_ray.cli import app
from starec_ray.data.prepare import prepare
from starec_ray.distill.settings import EndpointSettings
from starec_ray.errors import ConfigError, DataError, STARecError, StorageError
from tests.distill.server import TeacherServer, teacher_server

BEFORE_THE_KILL = 7  # answers
START_S = 60.0


def distil(server: TeacherServer, data: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", "from starec_ray.cli import main; main()", "distill"]
    command += ["--data", str(data), "--out", str(out), "--teacher", "small"]
    command += ["--base-url", server.url, "--users", "4", "--temperature", "0"]
    command += ["--concurrency", "1", "--min-score", "0.9", "--rethinks", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=START_S)
    assert process.returncode == 0, output
    return output


def test_a_killed_distillation_goes_on_and_ends_in_the_same_table(films, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with teacher_server() as server:
        finish(distil(server, films, whole))
        questions = len(server.seen)

    with teacher_server([""] * BEFORE_THE_KILL + ["timeout"]) as server:
        process = distil(server, films, killed)
        deadline = time.monotonic() + START_S
        while len(server.seen) <= BEFORE_THE_KILL:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (killed / "traces.parquet").exists()
    assert len((killed / "journal.jsonl").read_text().splitlines()) == BEFORE_THE_KILL

    with teacher_server() as server:
        output = finish(distil(server, films, killed))
        assert len(server.seen) == questions - BEFORE_THE_KILL
    assert f"going on: {BEFORE_THE_KILL} answers are there" in output
    tables = [pq.read_table(folder / "traces.parquet") for folder in (whole, killed)]
    assert len(tables[0]) > BEFORE_THE_KILL and tables[0].equals(tables[1])
    reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, killed)]
    assert reports[0]["verdicts"] == reports[1]["verdicts"]


def called(data: Path, out: Path, *options: str):
    paths = ["--data", str(data), "--out", str(out)]
    return CliRunner().invoke(app, ["distill", *paths, *options])


@pytest.mark.parametrize("protocol", [{"train_users": 0}, {"rounds": 1}])
def test_data_without_anybody_to_ask_about_are_a_clear_error(tmp_path, protocol):
    prepare("synthetic", tmp_path / "data", test_users=10, validation_users=0, **protocol)
    result = called(tmp_path / "data", tmp_path / "out", "--teacher", "template")
    assert isinstance(result.exception, DataError)
    assert "--train-users and with --rounds 2 or more" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_answers_nothing_is_an_error_and_the_table_before_stays(films, tmp_path):
    assert called(films, tmp_path, "--teacher", "template", "--users", "4").exit_code == 0
    table = (tmp_path / "traces.parquet").read_bytes()
    with teacher_server() as server:
        gone = server.url
    options = ("--teacher", "small", "--base-url", gone, "--users", "4", "--tries", "1")
    result = called(films, tmp_path, *options)
    assert isinstance(result.exception, STARecError)
    assert "small answered nothing (connection lost" in str(result.exception)
    assert (tmp_path / "traces.parquet").read_bytes() == table


def test_requests_with_a_new_field_that_are_refused_end_it_whatever_was_answered_without_it(
    films, tmp_path
):
    with teacher_server() as server:
        options = ("--teacher", "small", "--base-url", server.url, "--users", "4")
        assert called(films, tmp_path, *options).exit_code == 0
        server.faults += ["HTTP 400"] * 50
        result = called(films, tmp_path, *options, "--extra-body", '{"top_q": 1}')
    assert isinstance(result.exception, ConfigError)
    assert "refuses the requests themselves, HTTP 400" in str(result.exception)
    assert "going on" not in result.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--teacher", "small", "--base-url", "localhost:8000/v1"], "write http://HOST:PORT/v1"),
        (["--teacher", "template", "--extra-body", "{x"], "--extra-body is no JSON"),
    ],
)
def test_what_is_no_address_and_no_json_is_told_before_anything_is_asked(
    films, tmp_path, options, told
):
    result = called(films, tmp_path / "out", *options)
    assert isinstance(result.exception, ConfigError) and told in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_a_seed_that_no_generator_or_column_takes_is_refused(films, tmp_path, seed):
    result = called(films, tmp_path, "--teacher", "template", "--seed", seed)
    assert result.exit_code == 2 and "--seed" in result.output


def test_prompts_that_do_not_fit_are_told_in_the_commands_words_and_nothing_is_asked(
    films, tmp_path
):
    with teacher_server() as server:
        options = ["--teacher", "small", "--base-url", server.url, "--max-prompt-tokens", "256"]
        result = called(films, tmp_path / "out", *options)
        assert not server.seen
    assert isinstance(result.exception, ConfigError)
    assert "Raise --max-prompt-tokens" in str(result.exception)
    assert "max_model_len" not in str(result.exception)


def test_under_other_settings_a_question_is_asked_again(films, tmp_path):
    def distil_by_template(popularity_weight: str) -> dict:
        options = ["--teacher", "template", "--users", "4", "--popularity-weight"]
        result = called(films, tmp_path, *options, popularity_weight)
        assert result.exit_code == 0, result.output
        table = pq.read_table(tmp_path / "traces.parquet")
        return {row["trace_id"]: row["ranking"] for row in table.to_pylist()}

    first = distil_by_template("0.0")
    assert distil_by_template("9.0") != first
    assert distil_by_template("0.0") == first


def test_only_what_changes_an_endpoints_answers_asks_anew(films, tmp_path):
    def questions_at(server: TeacherServer, *options: str) -> int:
        before = len(server.seen)
        endpoint = ["--teacher", "small", "--base-url", server.url, "--users", "2"]
        result = called(films, tmp_path, *endpoint, *options)
        assert result.exit_code == 0, result.output
        return len(server.seen) - before

    with teacher_server() as server:
        asked = questions_at(server)
        assert asked and server.seen[0]["max_tokens"] == EndpointSettings.max_tokens
        for same in (
            ["--popularity-weight", "0.9"],
            ["--engine-settings", '{"quantization": "fp8"}'],
        ):
            assert questions_at(server, *same) == 0
        for other in (
            ["--temperature", "0.1"],
            ["--max-tokens", "8192"],
            ["--extra-body", '{"top_k": 1, "top_p": 0.5}'],
            ["--guided"],
        ):
            assert questions_at(server, *other) == asked
        assert questions_at(server, "--extra-body", '{"top_p": 0.5,"top_k": 1}') == 0


def test_a_place_that_can_not_be_written_is_named(films, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "out" / "journal.jsonl").mkdir(parents=True)
    for out in (tmp_path / "file" / "out", tmp_path / "out"):
        result = called(films, out, "--teacher", "template", "--users", "4")
        assert isinstance(result.exception, StorageError)
        assert str(result.exception).startswith(f"{out} can't be written: ")
        assert str(result.exception).endswith("another --out.")

"""What a job brings along, what it must find on the cluster, and a log that survives its line."""

import asyncio
import io
import shlex
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import typer
from ray.exceptions import RpcError
from ray.job_submission import JobStatus
from rich.console import Console

from starec_ray.cli import app
from starec_ray.cluster import connection
from starec_ray.config.recipe import load_recipe
from starec_ray.errors import ConfigError
from starec_ray.jobs import submit
from starec_ray.jobs.submit import follow, make_job
from tests.ray_nodes import free_port

DATA = "data.path=/mnt/shared/data"


def job(name, *arguments):
    command = typer.main.get_command(app).commands[name]
    parameters = command.make_context(name, list(arguments)).params
    return make_job(name, arguments, parameters)


def test_the_recipe_travels_and_storage_is_examined_before_the_run():
    made = job("train", "recipes/demo.yaml", DATA, "lr=1e-5", "--run-dir", "/mnt/shared/runs/a b")
    assert made.files == {"recipe/demo.yaml": Path("recipes/demo.yaml")}
    look, command = made.entrypoint(checked=True).split(" && ")
    assert shlex.split(look) == [
        *("starec", "doctor", "recipe/demo.yaml", DATA, "lr=1e-5"),
        *("--storage", "/mnt/shared/runs/a b", "--may-grow"),
    ]
    assert shlex.split(command) == [
        *("starec", "train", "recipe/demo.yaml", DATA, "lr=1e-5"),
        *("--run-dir", "/mnt/shared/runs/a b"),
    ]
    assert made.entrypoint(checked=False) == command


def test_trace_tables_are_looked_at_from_every_node_too():
    shared = "/mnt/shared/t.parquet:reflect"
    given = ["--run-dir", "/x", "--traces", shared, "--traces", "bundled"]
    made = job("train", "recipes/demo.yaml", DATA, *given)
    look, command = made.entrypoint(checked=True).split(" && ")
    overrides = [word for word in shlex.split(look) if "=" in word]
    assert overrides == [DATA, f'anchor.traces=["{shared}", "bundled"]']
    assert load_recipe("recipes/demo.yaml", overrides).config.traces == [shared, "bundled"]
    assert shlex.split(command)[-4:] == given[2:]


def test_a_recipe_and_a_space_of_one_name_keep_apart():
    made = job(
        "tune",
        *("recipes/sweep-demo.yaml", "--space=./recipes/spaces/sweep-demo.yaml"),
        *(DATA, "--out", "/mnt/shared/sweep", "--resume"),
    )
    assert set(made.files) == {"recipe/sweep-demo.yaml", "space/sweep-demo.yaml"}
    assert made.arguments == [
        *("tune", "recipe/sweep-demo.yaml", "--space=space/sweep-demo.yaml"),
        *(DATA, "--out", "/mnt/shared/sweep", "--resume"),
    ]
    assert made.storage == ["/mnt/shared/sweep"]


def test_a_space_may_lie_where_the_recipe_travels_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe").mkdir()
    for name in ("tiny.yaml", "recipe/tiny.yaml"):
        Path(name).write_text("data: {path: /mnt/shared/data}\n")
    made = job("tune", "tiny.yaml", "--space", "recipe/tiny.yaml", "--out", "/mnt/shared/sweep")
    assert made.arguments[:4] == ["tune", "recipe/tiny.yaml", "--space", "space/tiny.yaml"]


def test_distill_evaluate_and_doctor_travel_too():
    made = job("distill", "--data", "/mnt/d", "--out", "/mnt/traces", "--teacher", "Qwen/Qwen3-8B")
    examined = "--data /mnt/d --model Qwen/Qwen3-8B --storage /mnt/traces"
    assert made.entrypoint(checked=True).startswith(f"starec doctor {examined} --may-grow && ")
    for elsewhere in (["--teacher", "template"], ["--teacher", "r1", "--base-url", "https://x/v1"]):
        made = job("distill", "--data", "/mnt/d", "--out", "/mnt/traces", *elsewhere)
        assert made.examined == ["--data", "/mnt/d"]
    given = ["--data", "/mnt/d", "--model", "a/b", "--out", "/mnt/e"]
    made = job("evaluate", "--recipe", "recipes/demo.yaml", *given)
    assert made.examined == given[:4]
    assert job("evaluate", "--run", "/mnt/run").storage == ["/mnt/run"]
    assert job("doctor", "recipes/demo.yaml", DATA).entrypoint(checked=True) == (
        f"starec doctor recipe/demo.yaml {DATA}"
    )


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["train", "recipes/demo.yaml", DATA], "--run-dir is 'runs/latest'.*every node sees"),
        (["train", "recipes/demo.yaml", "--run-dir", "/x"], "data.path is 'runs/demo-data'"),
        (["train", "recipes/no.yaml", "--run-dir", "/x"], "no recipe recipes/no.yaml"),
        (
            ["train", "recipes/demo.yaml", DATA, "--run-dir", "/x", "--traces", "t.parquet"],
            "--traces is 't.parquet'",
        ),
        (
            ["train", "recipes/demo.yaml", DATA, "--run-dir", "/x", 'anchor.traces=["t.parquet"]'],
            "anchor.traces is 't.parquet'",
        ),
        (
            ["train", "recipes/demo.yaml", DATA, "--run-dir", "/x", "model.name=./mine"],
            "model.name is './mine'",
        ),
        (["train", "recipes/demo.yaml", DATA, "--run-dir", "/x", "lrr=1"], "did you mean 'lr'"),
        (
            ["distill", "--data", "/d", "--out", "/o", "--teacher", "./teacher"],
            "--teacher is './teacher'",
        ),
        (["evaluate", "--run", "runs/demo"], "--run is 'runs/demo'"),
    ],
)
def test_what_no_node_could_see_is_refused_here(command, told):
    with pytest.raises(ConfigError, match=told):
        job(*command)


def test_bundled_traces_come_with_the_program():
    assert job("train", "recipes/demo.yaml", DATA, "--run-dir", "/x", "--traces", "bundled")


def test_a_cluster_that_is_not_there_is_told_with_what_to_do(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(ConfigError, match=r"no cluster answers at http://127.0.0.1:1: .*8265"):
        submit.connect("http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"--address is '127.0.0.1:1': give .* http://HOST:8265"):
        submit.connect("127.0.0.1:1")


def test_a_cluster_named_by_its_head_is_looked_for_in_seconds(monkeypatch):
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setattr(connection, "BETWEEN_TRIES_S", 0.0)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=rf"nothing answers at .*RAY_ADDRESS={address}"):
        submit.connect(None)


def test_what_is_no_ray_at_its_address_is_told(monkeypatch):
    def refuse(address: str | None) -> None:
        raise RpcError("Deadline Exceeded")

    monkeypatch.setattr(submit, "JobSubmissionClient", refuse)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "10.0.0.1:8265")
    with pytest.raises(ConfigError, match=r"no cluster answers at 10\.0\.0\.1:8265: Deadline"):
        submit.connect(None)


class AsksForToken(BaseHTTPRequestHandler):
    """A job server that lets no one in, in the words of Ray's."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized: Missing authentication token")


def test_a_cluster_that_asks_for_a_token_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with ThreadingHTTPServer(("127.0.0.1", 0), AsksForToken) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ConfigError, match=f"{address} doesn't let .*Missing.*RAY_AUTH_TOKEN"):
            submit.connect(address)
        server.shutdown()


class FaultyLine:
    """A job server whose connection breaks after some characters, and then stays."""

    def __init__(self, log: str, breaks_after: list[int]) -> None:
        self.log, self.breaks_after = log, breaks_after

    def get_job_status(self, job_id: str) -> JobStatus:
        return JobStatus.RUNNING if self.breaks_after else JobStatus.SUCCEEDED

    async def tail_job_logs(self, job_id: str):
        end = self.breaks_after.pop(0) if self.breaks_after else len(self.log)
        for start in range(0, end, 5):
            yield self.log[start : min(start + 5, end)]
        if end < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly")


def test_a_log_is_shown_once_though_its_line_breaks(monkeypatch):
    monkeypatch.setattr(submit, "RECONNECT_EVERY_S", 0.0)
    log = "".join(f"line {i} [not markup]\n" for i in range(20))
    console = Console(file=io.StringIO())
    status = asyncio.run(follow(FaultyLine(log, [7, 3, 123]), "job", console))
    assert status == "SUCCEEDED"
    assert console.file.getvalue() == log

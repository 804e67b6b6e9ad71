"""The endpoint teacher against vLLM's own OpenAI server, on loopback."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from starec_ray.agent.agent import Agent
from starec_ray.agent.formats import FORMATS
from starec_ray.agent.prompts import PromptWriter
from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.distill.endpoint import EndpointTeacher
from starec_ray.distill.journal import Journal
from starec_ray.distill.pipeline import Distillation, choose_cases
from starec_ray.distill.settings import DistillSettings, EndpointSettings
from tests.ray_nodes import free_port

pytestmark = pytest.mark.engine
START_S = 240


@pytest.fixture(scope="module")
def server(echo_model, tmp_path_factory) -> Iterator[str]:
    """The base URL of vLLM's server with the tiny model."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log.txt"
    # What `vllm serve` runs; that command itself looks for the CUDA package's metadata.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [
        "--model",
        str(echo_model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        "tiny",
    ]
    command += ["--max-model-len", "2048", "--dtype", "float32", "--enforce-eager"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while not _answers(f"{url}/health"):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_a_served_model_is_asked_judged_and_never_asked_twice(films, server, tmp_path):
    writer = PromptWriter(FORMATS["grades"], (), 1, think_before_ranking=True)
    agent = Agent(Dataset.load(films), writer, 5, 1500, constrained=False)
    settings = DistillSettings(users=3, min_score=0.5, rethinks=1, seed=0)
    cases = choose_cases(agent, settings)

    def distil():
        teacher = EndpointTeacher(
            EndpointSettings(server, "tiny", temperature=0.0, max_tokens=12, tries=2)
        )
        with Journal(tmp_path / "journal.jsonl", teacher.name) as journal:
            distillation = Distillation(
                agent, cases, load_targets(films), teacher, journal, settings
            )
            return distillation.run(), teacher.usage

    table, usage = distil()
    rows = table.to_pylist()
    assert usage.answers == len(rows) >= 6
    assert {row["kind"] for row in rows} <= {"summarize", "rank"}
    # An untrained model's words are no ranking: each goes back once, and is malformed again.
    rankings = [row for row in rows if row["kind"] == "rank"]
    assert [row["attempt"] for row in rankings] == [0, 1] * 3
    assert {row["verdict"] for row in rankings} == {"malformed"}
    assert min(row["prompt_tokens"] for row in rows) > 20
    assert max(row["reply_tokens"] for row in rows) <= 12

    again, usage = distil()
    assert usage.requests == 0 and again.equals(table)


def test_a_guided_model_ranks_whole_whatever_it_knows(films, server, tmp_path):
    writer = PromptWriter(FORMATS["titles"], (), 1, think_before_ranking=True)
    agent = Agent(Dataset.load(films), writer, 5, 1500, constrained=False)
    settings = DistillSettings(users=2, min_score=0.0, rethinks=0, seed=0, guided=True)
    teacher = EndpointTeacher(EndpointSettings(server, "tiny", temperature=1.0, max_tokens=512))
    with Journal(tmp_path / "journal.jsonl", teacher.name) as journal:
        cases = choose_cases(agent, settings)
        table = Distillation(agent, cases, load_targets(films), teacher, journal, settings).run()
    assert not teacher.usage.faults
    rankings = [row for row in table.to_pylist() if row["kind"] == "rank"]
    assert len(rankings) >= 2
    for row in rankings:
        assert row["verdict"] in ("kept", "no rationale")  # letters at random may hold no word
        candidates = agent.dataset.case(row["case_id"]).candidates
        assert sorted(row["ranking"]) == sorted(item.item_id for item in candidates)
        assert len(row["reply"].splitlines()) == len(candidates)

"""One Ray and one tiny model for all tests that start real engines."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from hypothesis import settings

from tests.small_world import NAMES, write_small_world

INPUTS_TRIED = "inputs tried"  # a test's property: [of what, how many, how many were refused]

# How long an example takes says how busy the machine is, not whether the code is right; and the
# same code is tried with the same examples (`--hypothesis-profile=default` takes others).
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def small_world(tmp_path_factory) -> Path:
    """A prepared data folder of four items."""
    return write_small_world(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random model of a few hundred thousand parameters, with its tokenizer."""
    from starec_ray.models.tiny_model import PROMPT_TEXTS, TIMES, build_tiny_model

    texts = [*PROMPT_TEXTS, "Likes Alpha.", *NAMES] * TIMES
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny", texts)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with more logical than real cores: the actors of a test wait for each other."""
    from starec_ray.cluster.connection import start_ray

    assert not ray.is_initialized(), "an earlier test started another Ray"
    os.environ.pop("RAY_ADDRESS", None)
    start_ray({"num_cpus": 10, "object_store_memory": 200 * 2**20})
    yield
    ray.shutdown()


def pytest_terminal_summary(terminalreporter) -> None:
    tried: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for report in terminalreporter.getreports(""):  # of set-ups and teardowns
        for name, value in getattr(report, "user_properties", ()):
            if name == INPUTS_TRIED and report.when == "teardown":
                what, number, of_them = value
                tried[what] += number
                refused[what] += of_them
    if tried:
        terminalreporter.section("inputs tried")
    for what, number in tried.items():
        terminalreporter.write_line(f"{what}: {number}, of which {refused[what]} were refused")

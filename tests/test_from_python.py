"""The configuration from Python, in a process that nobody started Ray in."""

import subprocess
import sys

import pytest

# Its env runner has no place, so that what it is told comes after Ray was started.
SCRIPT = """
import sys
from starec_ray.config import STARecConfig

data, model = sys.argv[1:]
(
    STARecConfig()
    .data(path=data)
    .model(name=model, dtype="float32", max_model_len=512)
    .anchor(anchor_epochs=0)
    .env_runners(num_cpus_per_env_runner=1000)
    .fault_tolerance(start_timeout_s=3)
    .build_algo()
)
"""


@pytest.mark.engine
def test_an_algorithm_starts_ray_where_nobody_did(small_world, tiny_model):
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(small_world), str(tiny_model)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = process.stderr.strip().splitlines()[-1]
    assert "DeadlineError: 1 of 1 env runners did not start within 3 s" in process.stderr, last

"""What a process doesn't import: seconds of its start, and the floors of the house."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("starec_ray.data.prepare, starec_ray.agent.agent, starec_ray.metrics", "ray, torch, vllm"),
        ("actors.reward_actor", "ray, torch, transformers"),
        ("starec_ray.cli", "ray, torch"),
        ("starec_ray.recipe, starec_ray.algorithm", "learners.learner, transformers, vllm"),
    ],
)
def test_a_process_starts_without(modules, without):
    program = (
        f"import sys, {modules}\n"
        f"sys.exit(sorted({set(without.split(', '))!r} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

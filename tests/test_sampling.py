"""Env runners that fail: told soon, with the cause."""

import time

import pytest

from starec_ray.config import STARecConfig
from starec_ray.errors import STARecError
from starec_ray.evaluation.session import evaluation_session

pytestmark = pytest.mark.engine


def test_a_runner_that_can_not_start_ends_the_wait_with_its_cause(
    small_world, tiny_model, ray_cluster
):
    config = (
        STARecConfig()
        .data(path=small_world)
        .model(name=str(tiny_model), dtype="float32", max_model_len=1_000_000)
        .env_runners(num_env_runners=1, num_cpus_per_env_runner=1)
        .resolve()
    )
    with pytest.raises(STARecError, match=r"(?s)an env runner could not start.*max_model_len"):
        config.build_algo()
    start = time.monotonic()
    with (
        evaluation_session(config) as session,
        pytest.raises(STARecError, match=r"(?s)no env runner could start.*max_model_len"),
    ):
        session.models.load_model(str(tiny_model))
        session.models.sample([], rollouts=1, temperature=0.0, seed=0)
    assert time.monotonic() - start < config.start_timeout_s / 5

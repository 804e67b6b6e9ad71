"""The configuration from Python, in a process that nobody started Ray in."""

import subprocess
import sys

import pytest

from starec_ray.agent.agent import Agent
from starec_ray.algorithm import STARec
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError
from tests.small_world import dataset, write_random_traces
from tests.tiny_recipe import tiny_recipe

# Its env runner has no place, so that what it is told comes after Ray was started. Its traces are
# too long to learn from, which is nothing to a run without a stage one.
SCRIPT = """
import sys
from starec_ray.config import STARecConfig

data, model, traces = sys.argv[1:]
(
    STARecConfig()
    .data(path=data)
    .model(name=model, dtype="float32", max_model_len=512, max_rank_tokens=2)
    .anchor(anchor_epochs=0, traces=[traces])
    .env_runners(num_cpus_per_env_runner=1000)
    .fault_tolerance(start_timeout_s=3)
    .build_algo()
)
"""


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda algo: algo.set_state({}), "save_to_path and restore_from_path"),
        (lambda algo: algo.get_weights(), "save_model"),
        (lambda algo: algo.set_weights({}), "restore_from_path"),
        (lambda algo: algo.save_to_path("s3://bucket/saved"), "s3:.*no folder of this machine"),
        (lambda algo: algo.restore_from_path("s3://bucket/saved"), "s3:.*no folder of this"),
        (lambda algo: algo.save_model("s3://bucket/model"), "s3:.*no folder of this machine"),
    ],
)
def test_what_rllib_has_and_this_has_not_says_what_to_do_instead(call, instead):
    with pytest.raises(ConfigError, match=instead):
        call(STARec.__new__(STARec))


def test_a_dictionary_of_settings_may_hold_the_section_of_the_model():
    config = STARecConfig().update_from_dict({"model": {"name": "tiny"}, "lr": 1e-3})
    assert (config.model_name, config.lr) == ("tiny", 1e-3)
    with pytest.raises(TypeError, match="nam"):
        STARecConfig().update_from_dict({"model": {"nam": "tiny"}})


def test_a_configuration_that_rllib_serialized_is_read_again():
    config = STARecConfig().data(path="somewhere").model(name="tiny").training(lr=1e-3)
    again = STARecConfig.from_dict(config.serialize())
    assert (again.data_path, again.model_name, again.lr) == ("somewhere", "tiny", 1e-3)


def test_none_is_no_evaluation_during_training():
    assert STARecConfig().evaluation(evaluation_interval=None).evaluation_interval == 0


@pytest.mark.engine
def test_an_algorithm_starts_ray_where_nobody_did(small_world, tiny_model, tmp_path):
    agent = Agent.from_config(
        tiny_recipe(small_world, tiny_model, None).config, dataset(small_world)
    )
    traces = write_random_traces(tmp_path / "t.parquet", agent, 8)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(small_world), str(tiny_model), str(traces)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = process.stderr.strip().splitlines()[-1]
    assert "DeadlineError: 1 of 1 env runners did not start within 3 s" in process.stderr, last

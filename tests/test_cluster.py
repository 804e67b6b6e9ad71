"""What the cluster lacks is said at once."""

import pytest

from starec_ray.cluster import check_resources
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError
from starec_ray.placement import actor_resources

pytestmark = pytest.mark.engine


def test_actors_that_can_never_be_placed_are_refused_with_what_is_wanted_and_there(ray_cluster):
    config = (
        STARecConfig()
        .env_runners(num_env_runners=3, num_cpus_per_env_runner=4)
        .learners(num_learners=2, num_cpus_per_learner=5, num_gpus_per_learner=1)
    )
    wanted = actor_resources(config)
    assert wanted == {"CPU": 22, "GPU": 2}
    with pytest.raises(ConfigError, match=r"22 CPUs .* has 10; 2 GPUs .* has 0: rent a larger one"):
        check_resources(wanted, "rent a larger one")
    check_resources(actor_resources(config, learners=False) | {"CPU": 10}, "nothing to be done")


def test_a_cluster_that_was_joined_may_grow(ray_cluster, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_resources({"GPU": 8}, "add nodes")
    told = " ".join(capsys.readouterr().err.split())
    assert "8 GPUs are wanted and the cluster has 0: add nodes" in told

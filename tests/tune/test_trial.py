"""STARec as Tune takes it: any field a domain, a place for its actors."""

import pytest
from ray import tune
from ray.tune.search.sample import Domain

from starec_ray.algorithm import STARec
from starec_ray.config import STARecConfig


def test_from_python_any_field_of_any_section_may_be_a_domain():
    config = (
        STARecConfig()
        .data(path=tune.choice(["data/a", "data/b"]))
        .model(name=tune.choice(["tiny", "smollm2-135m-instruct"]))
        .anchor(anchor_epochs=tune.randint(0, 3))
        .rewards(reward_shape=tune.choice(["tiers", "ndcg"]))
        .training(lr=tune.loguniform(1e-6, 1e-4), temperature=tune.uniform(0.7, 1.2))
        .env_runners(num_env_runners=tune.choice([1, 2]))
        .learners(zero_stage=tune.choice([2, 3]))
        .evaluation(validation_cases=tune.choice([10, 20]))
        .fault_tolerance(max_failures=tune.choice([0, 1]))
    )
    tuner = tune.Tuner(STARec, param_space=config)
    space = tuner._local_tuner.param_space
    varied = {name for name, value in space.items() if isinstance(value, Domain)}
    assert varied == {
        "data_path",
        "model_name",
        "anchor_epochs",
        "reward_shape",
        "lr",
        "temperature",
        "num_env_runners",
        "zero_stage",
        "validation_cases",
        "max_failures",
    }
    assert space["data_path"].categories == ["data/a", "data/b"]


@pytest.mark.parametrize("credit", ["reply", "candidate"])  # that needs constrained grades
def test_a_trial_gets_a_place_whatever_its_fields_are(credit):
    config = (
        STARecConfig()
        .rewards(credit_assignment=credit)
        .env_runners(num_env_runners=2, num_cpus_per_env_runner=3)
        .learners(num_learners=2, num_gpus_per_learner=1)
    )
    place = STARec.default_resource_request(config.to_dict())
    runner, learner = {"CPU": 3}, {"CPU": 1, "GPU": 1}
    assert place.bundles == [{"CPU": 1}, runner, runner, learner, learner]
    assert place.strategy == "PACK"


def test_one_that_fails_before_it_has_a_configuration_can_be_named():
    """Ray asks a failed actor for its name: an error there would take the place of the cause."""
    assert repr(object.__new__(STARec)) == "STARec"

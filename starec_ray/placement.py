"""Where actors live: an engine on one node, learners together, reward actors apart.

An engine's GPUs are on one node because one actor holds them all. Ray spreads actors that are
started one by one once a node is half full, so learners get a placement group. A sweep's trials
bring a placement group of their own for everything.
"""

from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from starec_ray.errors import DeadlineError


def actor_bundles(config: Any, *, learners: bool = True) -> list[dict[str, float]]:
    """What each env runner and each learner takes, under Ray's names; a local learner is the
    driver's, and reward actors take nothing."""
    runner = {
        "CPU": config.num_cpus_per_env_runner,
        "GPU": config.num_gpus_per_env_runner,
        **config.custom_resources_per_env_runner,
    }
    return [runner] * config.num_env_runners + (learner_bundles(config) if learners else [])


def learner_bundles(config: Any) -> list[dict[str, float]]:
    """What each learner takes, under Ray's names."""
    learner = {
        "CPU": config.num_cpus_per_learner,
        "GPU": config.num_gpus_per_learner,
        **(config.custom_resources_per_learner or {}),
    }
    return [learner] * config.num_learners


def actor_resources(config: Any, *, learners: bool = True) -> dict[str, float]:
    """What all actors take together, under Ray's names."""
    total: dict[str, float] = {"CPU": 0, "GPU": 0}
    for bundle in actor_bundles(config, learners=learners):
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    return total


def learners_together(config: Any) -> PlacementGroup | None:
    """A place for all learners on as few nodes as hold them; None in a trial, which has one.

    Raises:
        DeadlineError: if the cluster has none within `start_timeout_s`.
    """
    if not config.num_learners or ray.util.get_current_placement_group():
        return None
    bundles = learner_bundles(config)
    place = ray.util.placement_group(bundles, strategy="PACK")
    if not place.wait(config.start_timeout_s):
        remove_placement_group(place)
        raise DeadlineError(
            f"the cluster had no place for {len(bundles)} learners of {bundles[0]} within "
            f"{config.start_timeout_s:.0f} s (start_timeout_s): `starec doctor` and `ray status` "
            "tell what it lacks."
        )
    return place

"""Where actors live: an engine on one node, learners together, reward actors apart.

An engine's GPUs are on one node because one actor holds them all. Ray spreads actors that are
started one by one once a node is half full, so learners get a placement group. Its own "SPREAD"
may put two actors that take no resources on one node, so reward actors are told theirs. A sweep's
trials bring a placement group of their own for everything.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
        missing = shortage(bundles)
        remove_placement_group(place)
        raise DeadlineError(
            f"the cluster had no place for {len(bundles)} learners within "
            f"{config.start_timeout_s:g} s (start_timeout_s): {missing}. `starec doctor` and "
            "`ray status` tell more."
        )
    return place


def apart(count: int) -> list[NodeAffinitySchedulingStrategy | None]:
    """A node for each of so many actors, in turns, so that a node that is lost takes few of them;
    one that comes back after that may live anywhere. None in a trial, whose own place Ray gives
    them then."""
    if ray.util.get_current_placement_group():
        return [None] * count
    alive = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
    return [NodeAffinitySchedulingStrategy(node, soft=True) for node in islice(cycle(alive), count)]


def shortage(bundles: Sequence[Mapping[str, float]]) -> str:
    """What is wanted for these, what the cluster has, and what is missing, in words."""
    wanted: Counter[str] = Counter()
    for bundle in bundles:
        wanted.update({name: amount for name, amount in bundle.items() if amount})
    there, free = ray.cluster_resources(), ray.available_resources()
    has = ", ".join(
        f"{name} {there.get(name, 0):g} ({free.get(name, 0):g} free)" for name in wanted
    )
    lacks = ", ".join(
        f"{name} {amount - free.get(name, 0):g}"
        for name, amount in wanted.items()
        if amount > free.get(name, 0)
    )
    return (
        f"wanted: {', '.join(f'{name} {amount:g}' for name, amount in wanted.items())}; "
        f"there: {has}; missing: {lacks or 'nothing in sum'}"
    )

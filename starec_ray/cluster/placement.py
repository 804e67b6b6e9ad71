"""Where actors live: an engine on one node, learners together, reward actors apart.

An engine's GPUs are on one node because one actor holds them all. Ray spreads actors that are
started one by one once a node is half full, so learners get a placement group. Its
strategies for actors, "SPREAD" and soft affinity to a node, may put two that take nothing on one
node, so reward actors get a placement group too. A sweep's trials bring one for everything.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.rllib.algorithms.utils import _get_main_process_bundle
from ray.tune import PlacementGroupFactory
from ray.util.placement_group import PlacementGroup, remove_placement_group
from rich.console import Console

from starec_ray.errors import DeadlineError

TOLD_AFTER_S = 25.0
NEXT_TO_NOTHING = {"memory": 1}  # byte: a bundle must take something, and any node has that


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


def share_gpus(config: Any) -> bool:
    """Whether a learner may come onto a GPU that an env runner's engine has."""
    shares = (config.num_gpus_per_env_runner, config.num_gpus_per_learner)
    return config.sleep_while_learning or any(0 < share < 1 for share in shares)


def fits_beside_an_engine(config: Any) -> bool:
    """Whether a learner and an env runner's engine can have one GPU together."""
    shares = (config.num_gpus_per_env_runner, config.num_gpus_per_learner)
    return min(shares) > 0 and sum(shares) <= 1


def total(bundles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What all take together."""
    taken: Counter[str] = Counter()
    for bundle in bundles:
        taken.update({name: amount for name, amount in bundle.items() if amount})
    return dict(taken)


def lacking(wanted: Mapping[str, float], there: Mapping[str, float]) -> dict[str, float]:
    """How much of what is wanted isn't there."""
    return {
        name: amount - there.get(name, 0)
        for name, amount in wanted.items()
        if amount > there.get(name, 0)
    }


def fits(bundle: Mapping[str, float], room: Mapping[str, float]) -> bool:
    """Whether a node with so much left holds an actor, which lives on one node."""
    return not lacking(bundle, room)


def in_words(bundle: Mapping[str, float]) -> str:
    """ "4 CPUs, 1 GPUs"."""
    return ", ".join(f"{amount:g} {name}s" for name, amount in bundle.items() if amount)


def trial_place(config: Any) -> PlacementGroupFactory:
    """What a trial takes under Tune: a bundle for its own process, and one for each actor."""
    own = _get_main_process_bundle(config)
    return PlacementGroupFactory([own, *actor_bundles(config)], strategy=config.placement_strategy)


def learners_together(config: Any) -> PlacementGroup | None:
    """A place for all learners on as few nodes as hold them; None in a trial, which has one.

    A wait that lasts is told of, with what is missing.

    Raises:
        DeadlineError: if the cluster has none within `start_timeout_s`.
    """
    if not config.num_learners or ray.util.get_current_placement_group():
        return None
    bundles = learner_bundles(config)
    place = ray.util.placement_group(bundles, strategy="PACK")
    patience = min(TOLD_AFTER_S, config.start_timeout_s)
    found = place.wait(patience)
    if not found and patience < config.start_timeout_s:
        tell_waiting("learner", bundles)
        found = place.wait(config.start_timeout_s - patience)
    if not found:
        missing = shortage(bundles)
        remove_placement_group(place)
        raise DeadlineError(
            f"the cluster had no place for {len(bundles)} learners within "
            f"{config.start_timeout_s:g} s (start_timeout_s): {missing}. `starec doctor` and "
            "`ray status` tell more."
        )
    return place


def apart(count: int) -> PlacementGroup | None:
    """A place for each of so many actors that take nothing, on as many nodes as there are, so that
    a node that is lost takes few of them; Ray finds those another place. None in a trial, which
    has one."""
    if ray.util.get_current_placement_group():
        return None
    return ray.util.placement_group([NEXT_TO_NOTHING] * count, strategy="SPREAD")


def tell_waiting(kind: str, bundles: Sequence[Mapping[str, float]]) -> None:
    """Says that so many actors of a kind have no place yet, and what is missing."""
    Console(stderr=True).print(
        f"[yellow]waiting for a place[/] for {len(bundles)} {kind}{'s' * (len(bundles) > 1)}: "
        f"{shortage(bundles)}",
        soft_wrap=True,
        highlight=False,
    )


def shortage(bundles: Sequence[Mapping[str, float]]) -> str:
    """What is wanted for these, what the cluster has, and what is missing, in words."""
    wanted = total(bundles)
    there, free = ray.cluster_resources(), ray.available_resources()
    has = ", ".join(
        f"{name} {there.get(name, 0):g} ({free.get(name, 0):g} free)" for name in wanted
    )
    lacks = ", ".join(f"{name} {amount:g}" for name, amount in lacking(wanted, free).items())
    return (
        f"wanted: {', '.join(f'{name} {amount:g}' for name, amount in wanted.items())}; "
        f"there: {has}; missing: {lacks or 'nothing in sum, but room on one node'}"
    )

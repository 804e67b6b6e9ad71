"""Population based training: trials that fall behind copy better ones, and vary their values."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from starec_ray.config.fields import attribute_of
from tune.space import Space

KEPT = 3  # checkpoints of a trial: one that is being copied must not be the next to go


class Population(PopulationBasedTraining):
    """Tune's, that pauses a trial only to make room for another one.

    Its own pauses wherever another isn't running. One whose engines are starting, for it has just
    copied, would have all others end theirs, and those then each other's.
    """

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        unfinished = [t for t in tune_controller.get_trials() if not t.is_finished()]
        if decision == TrialScheduler.PAUSE and fit(unfinished, ray.cluster_resources()):
            return TrialScheduler.CONTINUE
        return decision


def fit(trials: Sequence[Any], there: Mapping[str, float]) -> bool:
    """Whether trials, which are of one size, can all run at a time on what is there."""
    wanted = trials[0].placement_group_factory.required_resources
    return all(there.get(name, 0) >= each * len(trials) for name, each in wanted.items())


def population(space: Space, time_attr: str) -> Population:
    """The scheduler over a space; what it varies stays where the space has it.

    Args:
        time_attr: what of a result `grace_iterations` counts.
    """
    bounds = space.bounds()

    def within_bounds(settings: dict[str, Any]) -> dict[str, Any]:
        """Mends what Tune makes: it multiplies a number by 0.8 or 1.2, whatever its domain."""
        for attribute, (least, most) in bounds.items():
            settings[attribute] = min(max(settings[attribute], least), most)
        return settings

    # Tune steps to a neighbour in a list; a domain of choices it would multiply.
    mutations = {
        attribute_of(key): field.get("choice", space.domains()[attribute_of(key)])
        for key, field in space.fields.items()
    }
    return Population(
        time_attr=time_attr,
        perturbation_interval=space.settings.grace_iterations,
        hyperparam_mutations=mutations,
        custom_explore_fn=within_bounds,
    )

"""Population based training: trials that fall behind copy better ones, and vary their values."""

from typing import Any

from ray.tune.schedulers import PopulationBasedTraining

from starec_ray.recipe import attribute_of
from tune.space import Space

KEPT = 3  # checkpoints of a trial: one that is being copied must not be the next to go


def population(space: Space, time_attr: str) -> PopulationBasedTraining:
    """Tune's scheduler over a space; what it varies stays where the space has it.

    Args:
        time_attr: what of a result `grace_iterations` counts.
    """
    bounds = space.bounds()

    def within_bounds(settings: dict[str, Any]) -> dict[str, Any]:
        """Tune multiplies a number by 0.8 or 1.2, whatever its domain."""
        for attribute, (least, most) in bounds.items():
            settings[attribute] = min(max(settings[attribute], least), most)
        return settings

    # Tune steps to a neighbour in a list; a domain of choices it would multiply.
    mutations = {
        attribute_of(key): field.get("choice", space.domains()[attribute_of(key)])
        for key, field in space.fields.items()
    }
    return PopulationBasedTraining(
        time_attr=time_attr,
        perturbation_interval=space.settings.grace_iterations,
        hyperparam_mutations=mutations,
        custom_explore_fn=within_bounds,
    )

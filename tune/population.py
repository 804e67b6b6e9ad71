"""Population based training: trials that fall behind copy better ones, and vary their values."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from starec_ray.config.fields import attribute_of
from tune.space import Space

KEPT = 3  # checkpoints of a trial, the best
COPIED = "copied_checkpoint"  # in a trial's folder: of the trial that it copied last


class Population(PopulationBasedTraining):
    """Tune's, that pauses a trial only to make room for another one, and whose copies last.

    Its own pauses wherever another isn't running. One whose engines are starting, for it has just
    copied, would have all others end theirs, and those then each other's. And its own has a trial
    go on from a checkpoint in the other one's folder, where it may be gone before the engines are
    up: only the newest and the best of a trial are kept.
    """

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        unfinished = [t for t in tune_controller.get_trials() if not t.is_finished()]
        if decision == TrialScheduler.PAUSE and fit(unfinished, ray.cluster_resources()):
            return TrialScheduler.CONTINUE
        return decision

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        manager: Any = trial.run_metadata.checkpoint_manager
        others: Any = trial_to_clone.run_metadata.checkpoint_manager
        chosen = manager._latest_checkpoint_result
        if not Path(chosen.checkpoint.path).exists():  # the newest always is there
            chosen = others.latest_checkpoint_result
        storage: Any = trial.storage
        own = Path(storage.trial_fs_path) / COPIED
        copy_whole(Path(chosen.checkpoint.path), own)
        manager._latest_checkpoint_result = _TrainingResult(
            checkpoint=Checkpoint(str(own), chosen.checkpoint.filesystem), metrics=chosen.metrics
        )


def copy_whole(source: Path, target: Path) -> None:
    """A folder of the same files under another name, in the place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(source, target, copy_function=os.link)  # takes no time and no room
    except OSError:  # of storage that has no second names (shutil.Error is one too)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


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

"""A deadline for trials, for which Tune waits without an end."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console

from starec_ray.cluster.placement import shortage
from starec_ray.errors import DeadlineError
from starec_ray.training.recovery import MOST_REPEATED_LOSSES

LOOKS_S = 1.0  # apart
STANDSTILL_S = 5.0  # Tune's steps take a tenth of a second, or the time of what they wait for


def longest_start_s(config: Any) -> float:
    """What its own deadlines allow a trial until its actors are up, in seconds."""
    return 3 * config.start_timeout_s  # the learners' place, the learners, the env runners


def longest_silence_s(config: Any) -> float:
    """What its own deadlines allow a trial between two reports, with lost learners, in seconds."""
    updates = max(1, config.anchor_updates_per_iteration) + 1  # and a checkpoint
    once = 2 * config.start_timeout_s + updates * config.update_timeout_s
    return MOST_REPEATED_LOSSES * once + 4 * config.sample_timeout_s  # rank, reflect, …


class Silence(tune.Callback):
    """Ends a trial that runs and reports nothing any more; the others go on. Where none runs and
    none can start, it ends the sweep.

    A trial's own deadlines tell more, and come before: this is for one whose process hangs. A
    scheduler that copies trials waits for the checkpoint of one of them, and all of Tune with it:
    that one is ended by a thread of this, and of the others nothing counts as silence meanwhile.

    Args:
        silence_s: longest time between a start, an iteration and a checkpoint of a trial.
        start_s: longest time until one of those that wait is up, where none runs.
        bundles: what a trial takes, under Ray's names.
    """

    def __init__(
        self, silence_s: float, start_s: float, bundles: Sequence[Mapping[str, float]]
    ) -> None:
        self._silence_s = silence_s
        self._start_s = start_s
        self._bundles = bundles
        self.ended: set[str] = set()  # trials

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self._heard: dict[str, float] = {}  # trial → when
        self._moved = self._begun = time.monotonic()  # any of them; Tune's step
        self._trials: Sequence[Trial] = ()
        self._over = threading.Event()
        threading.Thread(target=self._watch_saves, name="silence", daemon=True).start()

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._begun, self._trials = time.monotonic(), trials

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """
        Raises:
            DeadlineError: none runs and none can start; says what the cluster lacks.
        """
        now = time.monotonic()
        if (stood := now - self._begun) > STANDSTILL_S:  # and heard nobody
            self._heard = {trial: heard + stood for trial, heard in self._heard.items()}
            self._moved += stood
        for trial in trials:
            if trial.status == Trial.RUNNING:
                self._moved = now
                if now - self._heard.setdefault(trial.trial_id, now) > self._silence_s:
                    self._heard[trial.trial_id] = now
                    self._end(trial)
        waiting = [trial.trial_id for trial in trials if trial.status == Trial.PENDING]
        if waiting and now - self._moved > self._start_s:
            raise DeadlineError(
                f"no trial was up within {self._start_s:g} s; waiting or starting: "
                f"{', '.join(waiting)}. For one of them: {shortage(self._bundles)}. Make room, or "
                "raise fault_tolerance.start_timeout_s; --resume goes on with what isn't finished."
            )

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._heard[trial.trial_id] = self._moved = time.monotonic()

    on_trial_save = on_trial_error = on_trial_complete = on_trial_start

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any
    ) -> None:
        self.on_trial_start(iteration, trials, trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._over.set()

    def _watch_saves(self) -> None:
        """Ends trials that hang in a checkpoint for which Tune stands still."""
        while not self._over.wait(LOOKS_S):
            if time.monotonic() - self._begun > self._silence_s:
                for trial in self._trials:
                    if _is_saving(trial):
                        self._end(trial)

    def _end(self, trial: Trial) -> None:
        self.ended.add(trial.trial_id)
        Console(stderr=True).print(
            f"[yellow]trial {trial.trial_id} was ended:[/] it reported nothing for "
            f"{self._silence_s:g} s, on {trial.node_ip}. `starec tune … --resume` takes it up "
            "again.",
            soft_wrap=True,
            highlight=False,
        )
        if actor := trial.temporary_state.ray_actor:
            ray.kill(actor)  # Tune then finds it failed


def _is_saving(trial: Trial) -> bool:
    """Whether a checkpoint that a scheduler asked of it isn't there yet."""
    saving: Any = trial.temporary_state.saving_to
    future = getattr(saving, "future", None)
    return bool(future) and not ray.wait([future], timeout=0)[0]

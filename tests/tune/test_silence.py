"""Trials under the real Tune that hang, or have no place."""

import time
from pathlib import Path

import pytest
from ray import tune
from ray.train._internal.session import _FutureTrainingResult

from starec_ray.errors import DeadlineError
from tests.tiny_recipe import tiny_recipe
from tune import silence as module
from tune import sweep as sweep_module
from tune.population import Population
from tune.silence import Silence, longest_silence_s, longest_start_s
from tune.space import Space, SweepSettings

PLACE = {"CPU": 1}
SILENCE_S = 10.0
STEPS = 3
TRIALS = 3
BEST = TRIALS - 1  # its score
NOWHERE = {"CPU": 1, "a resource of no node": 2}


def hanging(config: dict) -> None:
    tune.report({"step": 1})
    time.sleep(600 * config["hangs"])
    tune.report({"step": 2})


def run(folder: Path, takes: dict, **deadlines: float) -> tune.ResultGrid:
    tuner = tune.Tuner(
        tune.with_resources(hanging, tune.PlacementGroupFactory([takes])),
        param_space={"hangs": tune.grid_search([1, 0])},
        run_config=tune.RunConfig(
            storage_path=str(folder), callbacks=[Silence(**deadlines, bundles=[takes])], verbose=0
        ),
    )
    return tuner.fit()


@pytest.mark.engine
def test_a_trial_that_reports_nothing_any_more_is_ended_and_the_others_go_on(
    ray_cluster, tmp_path, capsys
):
    hung, whole = run(tmp_path, PLACE, silence_s=SILENCE_S, start_s=300.0)
    assert hung.error and hung.metrics["step"] == 1
    assert not whole.error and whole.metrics["step"] == 2
    told = capsys.readouterr().err
    assert "_00000 was ended: it reported nothing for 10 s" in told and "_00001" not in told


class HangsInItsCheckpoint(tune.Trainable):
    """The best of some trials, which the worst is to copy, doesn't come out of its save. It reports
    after the others' first reports, so that it is known for the best; they go on when it saves.
    """

    def setup(self, config: dict) -> None:
        self.score, self.folder = config["score"], Path(config["folder"])
        self.saving = self.folder / "saving"
        (self.folder / f"up-{self.trial_id}").touch()
        while len(list(self.folder.glob("up-*"))) < TRIALS:  # a wait in a step counts as silence
            time.sleep(0.1)

    def step(self) -> dict:
        if self.score == BEST:
            while len(list(self.folder.glob("compared-*"))) < TRIALS - 1:
                time.sleep(0.1)
        elif self.iteration:
            (self.folder / f"compared-{self.trial_id}").touch()
            while not self.saving.exists():
                time.sleep(0.1)
        return {"score": self.score, tune.result.DONE: self.iteration == STEPS - 1}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self.score == BEST:
            self.saving.touch()
            time.sleep(600)
        (Path(checkpoint_dir) / "nothing").touch()

    def load_checkpoint(self, checkpoint_dir: str) -> None: ...


@pytest.mark.engine
def test_of_a_population_that_waits_for_a_checkpoint_the_trial_that_hangs_in_it_is_ended_alone(
    ray_cluster, tmp_path, capsys, monkeypatch
):
    waits: list[float] = []
    resolve = _FutureTrainingResult.resolve

    def timed(self: _FutureTrainingResult, block: bool = True) -> object:
        start = time.monotonic()
        try:
            return resolve(self, block)
        finally:
            waits.append(time.monotonic() - start)

    monkeypatch.setattr(_FutureTrainingResult, "resolve", timed)
    population = Population(
        time_attr="training_iteration",
        perturbation_interval=1,
        hyperparam_mutations={"lr": [1, 2]},
        quantile_fraction=0.34,
    )
    tuner = tune.Tuner(
        tune.with_resources(HangsInItsCheckpoint, PLACE),
        param_space={"score": tune.grid_search([*range(TRIALS)]), "lr": 1, "folder": str(tmp_path)},
        tune_config=tune.TuneConfig(scheduler=population, metric="score", mode="max"),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            callbacks=[Silence(silence_s=SILENCE_S, start_s=300.0, bundles=[PLACE])],
            verbose=0,
        ),
    )
    worst, bystander, hung = tuner.fit()
    assert max(waits) > SILENCE_S - 1
    told = capsys.readouterr().err
    assert hung.error and told.count("was ended") == 1 and "_00002 was ended" in told
    for trial in (worst, bystander):
        assert not trial.error and trial.metrics["training_iteration"] >= STEPS


@pytest.mark.engine
def test_trials_without_a_place_end_the_sweep_with_what_is_missing(ray_cluster, tmp_path):
    with pytest.raises(DeadlineError, match=r"_00000.* missing: a resource of no node 2.*--resume"):
        run(tmp_path, NOWHERE, silence_s=300.0, start_s=3.0)


def test_a_sweep_has_the_deadlines_and_they_leave_a_trial_time_for_its_own(
    small_world, tiny_model, tmp_path, monkeypatch
):
    recipe = tiny_recipe(small_world, tiny_model, None)
    config = recipe.config
    assert longest_start_s(config) > 2 * config.start_timeout_s
    a_loss = config.start_timeout_s + config.anchor_updates_per_iteration * config.update_timeout_s
    assert (
        longest_silence_s(config) > module.MOST_REPEATED_LOSSES * a_loss + config.sample_timeout_s
    )
    space = Space(SweepSettings(), {"training.lr": {"choice": [1e-5, 1e-4]}})
    silence = Silence(longest_silence_s(config), longest_start_s(config), [PLACE])
    tuner = sweep_module._tuner(config.to_dict(), recipe, space, tmp_path, silence)
    assert tuner._local_tuner.get_run_config().callbacks == [silence]

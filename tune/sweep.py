"""A sweep: the anchor made once where it can be, then trials of `STARec` under Ray Tune."""

import os
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search import (
    BasicVariantGenerator,
    ConcurrencyLimiter,
    SearchAlgorithm,
    Searcher,
)
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from starec_ray.algorithm import STARec
from starec_ray.cluster import check_resources, start_ray
from starec_ray.config import STARecConfig
from starec_ray.errors import ConfigError
from starec_ray.placement import actor_bundles
from starec_ray.plan import REMEDY
from starec_ray.recipe import Recipe, attribute_of, build, with_values
from starec_ray.run_dir import RunDir
from starec_ray.train import train
from tune.results import Trial, metric_path, read_trials, write_results
from tune.space import Space, SweepSettings

TRIALS = "trials"  # Tune's own folder
ANCHOR = "anchor"  # the run that made the anchored model which all trials begin with
CLOCK = "iterations_done"  # GRPO iterations
# What the anchor depends on: a sweep over none of it anchors once.
ANCHORS = ("data.", "model.", "anchor.")
ANCHORS_TRAINING = ("training.warmup_steps", "training.weight_decay", "training.grad_clip")


def sweep(
    recipe: Recipe, space: Space, out: Path, console: Console, *, resume: bool = False
) -> list[Trial]:
    """Runs the trials of a space around a recipe; `out` holds everything that came of it.

    Args:
        recipe: what the trials have in common; `run.iterations`, `run.metric` and `run.mode` say
            how long the longest one is and what it is judged by.
        resume: go on with a sweep that was stopped: what is finished isn't run again.

    Raises:
        ConfigError: if the folder holds a sweep and `resume` is False, or none and it is True; if
            the recipe can't be run or the cluster has no room for one trial.
    """
    folder = RunDir(out)  # only for its lock
    trials = folder.path / TRIALS
    with folder.lock():
        if resume != tune.Tuner.can_restore(trials):
            raise ConfigError(
                f"{out} holds no sweep to resume: leave --resume out."
                if resume
                else f"{out} holds a sweep already: give another --out, or --resume it."
            )
        recipe.config.resolve()
        start_ray(recipe.run.ray)
        check_resources(_trial_bundles(recipe.config), REMEDY)
        config = _shared_anchor(recipe, space, folder.path, console)
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths stay what they are
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # that prints each trial's 300 settings
        varied = _varied(config, space)
        if resume:  # trials that weren't drawn yet are made of what is given again
            tuner = tune.Tuner.restore(str(trials), STARec, resume_errored=True, param_space=varied)
        else:
            tuner = _tuner(varied, recipe, space, folder.path)
        found = read_trials(tuner.fit(), space, recipe.run)
        write_results(found, recipe, folder.path, console)
    return found


def _trial_bundles(config: STARecConfig) -> list[dict[str, float]]:
    """What one trial takes, under Ray's names: its own process and its actors."""
    return [{"CPU": config.num_cpus_for_main_process}, *actor_bundles(config)]


def _shared_anchor(recipe: Recipe, space: Space, out: Path, console: Console) -> STARecConfig:
    """The trials' configuration: where none of the fields that vary touches the anchor, they
    begin with one anchored model."""
    touched = [k for k in space.fields if k.startswith(ANCHORS) or k in ANCHORS_TRAINING]
    if touched or not recipe.config.anchor_epochs:
        return recipe.config
    model = RunDir(out / ANCHOR).anchored_model
    if not model.exists():
        console.print("the anchor is made once, for all trials:")
        alone = with_values(recipe.sections, {"run.iterations": 0, "run.evaluate": False})
        train(build(alone), out / ANCHOR, console, overwrite=True)
    anchored = {"model.name": str(model), "anchor.anchor_epochs": 0, "anchor.traces": []}
    return build(with_values(recipe.sections, anchored)).config.resolve()


def _varied(config: STARecConfig, space: Space) -> dict[str, Any]:
    """What trials are made of: the configuration, with domains where the space has fields."""
    config = config.copy(copy_frozen=False).evaluation(evaluation_interval=1)
    for attribute, domain in space.domains().items():
        setattr(config, attribute, domain)
    return config.to_dict()


def _tuner(varied: dict[str, Any], recipe: Recipe, space: Space, out: Path) -> tune.Tuner:
    settings, run = space.settings, recipe.run
    schedulers = {
        "asha": lambda: ASHAScheduler(
            time_attr=CLOCK,
            max_t=run.iterations,
            grace_period=min(settings.grace_iterations, run.iterations),
            reduction_factor=2,
        ),
        "pbt": lambda: PopulationBasedTraining(
            time_attr=CLOCK,
            perturbation_interval=settings.grace_iterations,
            hyperparam_mutations=space.domains(),
        ),
        "none": FIFOScheduler,
    }
    return tune.Tuner(
        STARec,
        param_space=varied,
        tune_config=tune.TuneConfig(
            metric=metric_path(run.metric),
            mode=run.mode,
            num_samples=settings.num_samples,
            scheduler=schedulers[settings.scheduler](),
            search_alg=searcher(settings, run.seed),
        ),
        run_config=tune.RunConfig(
            name=TRIALS,
            storage_path=str(out),
            stop={CLOCK: run.iterations},
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=metric_path(run.metric),
                checkpoint_score_order=run.mode,
                checkpoint_frequency=run.checkpoint_every,
                checkpoint_at_end=True,
            ),
            progress_reporter=tune.CLIReporter(
                parameter_columns={attribute_of(key): key for key in space.fields},
                metric_columns={CLOCK: "iterations", metric_path(run.metric): run.metric},
                max_report_frequency=30,
            ),
            verbose=1,
        ),
    )


def searcher(settings: SweepSettings, seed: int) -> SearchAlgorithm | Searcher:
    """What draws the trials, as many at a time as the settings allow. Tune's own
    `max_concurrent_trials` is ignored where the searcher is the random one."""
    most = settings.max_concurrent
    if settings.searcher == "random":
        return BasicVariantGenerator(random_state=seed, max_concurrent=most)
    optuna = OptunaSearch(seed=seed)
    return ConcurrencyLimiter(optuna, max_concurrent=most) if most else optuna

"""A sweep: the anchor made once if possible, then trials of `SweepTrial` under Ray Tune."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import (
    BasicVariantGenerator,
    ConcurrencyLimiter,
    SearchAlgorithm,
    Searcher,
)
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from starec_ray.checkpoints.changes import changes
from starec_ray.cluster.connection import check_resources, start_ray
from starec_ray.cluster.placement import trial_place
from starec_ray.config import STARecConfig
from starec_ray.config.fields import attribute_of
from starec_ray.config.recipe import (
    FIXED_OF_RUN,
    FREE_SECTIONS,
    Recipe,
    build,
    resolved_sections,
    sections_of,
    with_values,
)
from starec_ray.errors import ConfigError
from starec_ray.files import read_yaml, written_whole
from starec_ray.jobs.inputs import check_before_start
from starec_ray.jobs.train import train
from starec_ray.run_dir import RunDir
from tune.population import KEPT, population
from tune.results import STORAGE, Trial, read_trials, write_results, write_table
from tune.silence import Silence, longest_silence_s, longest_start_s
from tune.space import SEED, Space, SweepSettings
from tune.trial import Restarts, SweepTrial, metric_path, with_settings

BEGUN = "sweep.yaml"  # the recipe and the space that a sweep was begun with
TRIALS = "trials"  # Tune's own folder
ANCHOR = "anchor"  # the run that made the anchored model which all trials begin with
CLOCK = "iterations_done"  # GRPO iterations
# What the anchor depends on: a sweep over none of it anchors once.
ANCHORS = ("data.", "model.", "anchor.")
ANCHORS_FIELDS = ("training.warmup_steps", "training.weight_decay", "training.grad_clip", SEED)
# What a sweep that is resumed may change: nothing that trials are compared by. How often they save
# is kept by Tune with each of them.
FREE_OF_A_SWEEP = FREE_SECTIONS - {"evaluation"}
FIXED_OF_A_SWEEP = FIXED_OF_RUN | {"iterations", "checkpoint_every"}
# Trials are judged by validation users after each iteration, and ask no test users.
OF_TRIALS = {"evaluation.evaluation_interval": 1, "run.evaluate": False}
STATES = "experiment_state-*.json"  # Tune's own of all trials, one for each time that it ran
ENDED = ("TERMINATED", "ERROR")  # in Tune's words


def sweep(
    recipe: Recipe, space: Space, out: Path, console: Console, *, resume: bool = False
) -> list[Trial]:
    """Runs the trials of a space around a recipe, and writes all results to `out`.

    Args:
        recipe: what the trials share; `run.iterations` is the length of the longest trial,
            `run.metric` is what trials are judged by.
        resume: resume a stopped sweep: finished trials aren't run again, and what is given for
            actors, deadlines and limits holds for the others. Tune unpickles files in its folder,
            which may run any code: resume only folders of your own.

    Raises:
        ConfigError: if `out` holds a sweep and `resume` is False, or no sweep and it is True, or
            a sweep of another recipe or space, or one whose state is damaged; if the recipe can't
            be run, or the cluster has no room for one trial.
        KeyboardInterrupt: it was stopped (Ctrl-C) before all trials had ended.
    """
    if recipe.run.iterations < 1:
        raise ConfigError(
            "run.iterations is 0: a sweep compares trials while stage two lasts. Give it 1 or more."
        )
    folder = RunDir(out)  # only for its lock
    trials = folder.path / TRIALS
    with folder.lock():
        if held := folder.holds():
            raise ConfigError(f"{out} holds a run ({', '.join(held)}): give another --out.")
        wanted = _described(recipe, space)
        _check_begun(folder.path / BEGUN, wanted, resume=resume)
        state = _newest_state(trials) if resume else None
        recipe.config.resolve()
        check_before_start(build(with_values(recipe.sections, OF_TRIALS)))
        start_ray(recipe.run.ray)
        check_resources(trial_place(recipe.config).bundles)
        with written_whole(folder.path / BEGUN) as aside:
            aside.write_text(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
        config = _shared_anchor(recipe, space, folder.path, console)
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths stay what they are
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # that prints each trial's 300 settings
        varied = _varied(config, space)
        silence = Silence(
            longest_silence_s(config), longest_start_s(config), trial_place(config).bundles
        )
        watching = (silence, Restarts(silence.ended))
        if not state:
            tuner = _tuner(varied, recipe, space, folder.path, *watching)
        else:
            # All that Tune restores but the trials is what this one writes.
            _tuner(varied, recipe, space, folder.path, *watching, _NotAnew(state))
            given = {name: varied[name] for name in varied.keys() - space.domains().keys()}
            kind = with_settings(SweepTrial, given)
            tuner = tune.Tuner.restore(str(trials), kind, resume_errored=True, param_space=varied)
        found = read_trials(tuner.fit(), space, recipe.run)
        # By its state: those that it ended itself, as it was stopped, Tune calls terminated.
        ended = sum(status in ENDED for status in _statuses(_newest_state(trials)))
        if ended < space.size():
            write_table(found, recipe.run, folder.path, console)
            console.print(
                f"[yellow]stopped:[/] {ended} of {space.size()} trials are finished; --resume "
                "goes on.",
                highlight=False,
            )
            raise KeyboardInterrupt
        write_results(found, recipe, folder.path, console)
    return found


def _described(recipe: Recipe, space: Space) -> dict[str, dict[str, Any]]:
    """All that defines a sweep, as YAML types, except Ray's own arguments."""
    sections = resolved_sections(build(recipe.sections))  # names as they are given
    del sections["run"]["ray"]
    return sections | {"sweep": asdict(space.settings), "space": space.fields}


def _check_begun(begun: Path, wanted: dict[str, dict[str, Any]], *, resume: bool) -> None:
    """Raises ConfigError if the folder doesn't allow the sweep to start, or to resume, as asked."""
    if resume != begun.exists():
        raise ConfigError(
            f"{begun.parent} holds no sweep to resume: leave --resume out."
            if resume
            else f"{begun.parent} holds a sweep already: give another --out, or --resume it."
        )
    if not resume:
        return
    given = read_yaml(begun, f"{begun} does not exist.")
    before, now = _compared(sections_of(given, begun)), _compared(wanted)
    none = dict.fromkeys(before | now)  # a field of the space may be there no longer, or only now
    if changed := changes(none | before, none | now):
        raise ConfigError(
            f"{begun.parent} was begun with another recipe or space: {'; '.join(changed)}. Give "
            "the values that it was begun with (KEY=VALUE replaces a recipe's), or begin another "
            "sweep: another --out."
        )


def _compared(described: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a sweep may not change as it goes on, "section.key" → value."""
    return {
        f"{section}.{key}": value
        for section, keys in described.items()
        for key, value in keys.items()
        if section not in FREE_OF_A_SWEEP and (section != "run" or key in FIXED_OF_A_SWEEP)
    }


def _newest_state(trials: Path) -> Path | None:
    """What Tune goes on from; None where no trial was drawn yet.

    Raises:
        ConfigError: if it is damaged.
    """
    state = max(trials.glob(STATES), default=None)
    try:
        return state if _statuses(state) else None
    except (ValueError, KeyError, TypeError) as error:
        assert state
        raise _damaged(state, f"it isn't whole: {error}") from None


def _statuses(state: Path | None) -> list[str]:
    """Of all trials that were drawn, in Tune's words."""
    if state is None:
        return []
    drawn = json.loads(state.read_text(encoding="utf-8"))["trial_data"]
    return [json.loads(trial)["status"] for trial, _ in drawn]


def _damaged(state: Path, fault: str) -> ConfigError:
    of_its_time = state.with_name(f"*{state.stem.removeprefix('experiment_')}.*")
    return ConfigError(
        f"the sweep can't go on from {state}: {fault}. Move {of_its_time} away, and --resume goes "
        "on from the state before that, or begins all trials anew where there is none."
    )


class _NotAnew(tune.Callback):
    """Ends a sweep that can't go on: Tune would begin anew, with one trial."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        if not trials:
            raise _damaged(self._state, "Tune can't read it, or what belongs to it; see its log")


def _shared_anchor(recipe: Recipe, space: Space, out: Path, console: Console) -> STARecConfig:
    """The trials' configuration: if no field that varies touches the anchor, they all begin with
    one anchored model. An anchor that was stopped is resumed."""
    touched = [k for k in space.fields if k.startswith(ANCHORS) or k in ANCHORS_FIELDS]
    if touched or not recipe.config.anchor_epochs:
        return recipe.config
    run = RunDir(out / ANCHOR)
    if not run.anchored_model.exists():
        console.print("the anchor is made once, for all trials:")
        alone = {"run.iterations": 0, "run.evaluate": False, STORAGE: ""}
        own = build(with_values(recipe.sections, alone))
        train(own, run.path, console, resume=run.config.exists())
    model = str(run.anchored_model)
    anchored = {"model.name": model, "anchor.anchor_epochs": 0, "anchor.traces": []}
    return build(with_values(recipe.sections, anchored)).config.resolve()


def _varied(config: STARecConfig, space: Space) -> dict[str, Any]:
    """What trials are made from: the configuration, with domains for the space's fields."""
    config = config.copy(copy_frozen=False)
    config.evaluation(evaluation_interval=OF_TRIALS["evaluation.evaluation_interval"])
    for attribute, domain in space.domains().items():
        setattr(config, attribute, domain)
    return config.to_dict()


def _tuner(
    varied: dict[str, Any], recipe: Recipe, space: Space, out: Path, *callbacks: tune.Callback
) -> tune.Tuner:
    settings, run = space.settings, recipe.run
    schedulers = {
        "asha": lambda: ASHAScheduler(
            time_attr=CLOCK,
            max_t=run.iterations,
            grace_period=min(settings.grace_iterations, run.iterations),
            reduction_factor=2,
        ),
        "pbt": lambda: population(space, CLOCK),
        "none": FIFOScheduler,
    }
    return tune.Tuner(
        SweepTrial,
        param_space=varied,
        tune_config=tune.TuneConfig(
            metric=metric_path(run.metric),
            mode="max",
            num_samples=settings.num_samples,
            scheduler=schedulers[settings.scheduler](),
            search_alg=searcher(settings, run.seed),
        ),
        run_config=tune.RunConfig(
            name=TRIALS,
            storage_path=str(out),
            stop={CLOCK: run.iterations},
            callbacks=list(callbacks),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=KEPT if settings.scheduler == "pbt" else 1,
                checkpoint_score_attribute=metric_path(run.metric),
                checkpoint_score_order="max",
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
    """What draws the trials, as many at a time as the settings allow. Tune ignores its own
    `max_concurrent_trials` if the searcher is the random one."""
    most = settings.max_concurrent
    if settings.searcher == "random":
        return BasicVariantGenerator(random_state=seed, max_concurrent=most)
    optuna = OptunaSearch(seed=seed)
    return ConcurrencyLimiter(optuna, max_concurrent=most) if most else optuna

"""The main job: anchor, reinforce, save, evaluate, into a run directory."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from starec_ray.algorithm import STARec
from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.checkpoints.store import CheckpointStore
from starec_ray.cluster.connection import check_resources, start_ray
from starec_ray.cluster.placement import actor_bundles
from starec_ray.config.identity import identity
from starec_ray.config.recipe import Recipe, resolved_sections
from starec_ray.data.store import MANIFEST as DATA_MANIFEST
from starec_ray.errors import ConfigError
from starec_ray.evaluation.plots import plot_training
from starec_ray.evaluation.session import SavedModels, Session
from starec_ray.files import failing_for
from starec_ray.jobs.evaluate import compare, trained_models
from starec_ray.jobs.inputs import check_before_start
from starec_ray.jobs.resume import (
    begin_afresh,
    check_inputs_stay,
    is_finished,
    starting_point,
)
from starec_ray.jobs.training_run import TrainingRun
from starec_ray.run_dir import RunDir

# What tells that a folder is something else's.
FOREIGN = {DATA_MANIFEST: "a data folder", "sweep.yaml": "the folder of a sweep"}


def train(
    recipe: Recipe,
    run_path: Path,
    console: Console,
    *,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint: str = "",
) -> RunDir:
    """Trains by a recipe and evaluates; the run directory holds everything that came of it.

    Args:
        recipe: what to do.
        run_path: the run directory.
        console: where the results are shown.
        overwrite: empty a folder, and a storage, that holds a run already.
        resume: go on from the newest checkpoint of the run in the folder; where there is none,
            of those in the storage.
        checkpoint: the name or path of an earlier one to resume from; those after it are removed.

    Raises:
        ConfigError: if the folder holds a run already and neither is asked for, or is in use, or
            is one of data or of a sweep, or the storage is another run's, or the recipe can't be
            run, or isn't that of the run to resume.
        TooManyFailuresError, CollapseError, DeadlineError, StorageError: what ended the training.
    """
    _check_is_free(run_path)
    run = RunDir(run_path)
    with run.lock():
        recipe.config.resolve()
        checkpoints = Checkpoints(
            run.checkpoints,
            recipe.run.keep_checkpoints,
            identity(recipe.config, recipe.run.metric),
            lambda fault: console.print(f"[yellow]{escape(fault)}[/]", soft_wrap=True),
            CheckpointStore(recipe.run.checkpoint_storage, recipe.config.storage_timeout_s)
            if recipe.run.checkpoint_storage
            else None,
        )
        check_before_start(recipe)
        check_inputs_stay(run, recipe.config)
        start = starting_point(run, recipe, checkpoints, console, overwrite, resume, checkpoint)
        if start and not checkpoint and is_finished(run, recipe, start):
            console.print(
                f"nothing to do: {run.path} has done its {recipe.run.iterations} iterations of "
                "stage two. To go on, give it more: run.iterations=…"
            )
            return run
        start_ray(recipe.run.ray)
        check_resources(actor_bundles(recipe.config))
        console.print(f"starting actors: {_actors(recipe)}")
        algo = recipe.config.build_algo()
        assert isinstance(algo, STARec)
        training = TrainingRun(algo, recipe, run, checkpoints, console)
        try:
            if checkpoint:  # only now: what goes would be missed if nothing could be started
                checkpoints.go_back_to(checkpoint)
            if not start:
                begin_afresh(run, checkpoints, overwrite=overwrite, resume=resume)
            run.write_config(resolved_sections(recipe))
            algo.failures.tell = training.tell_failure
            algo.rollout_queue.end = recipe.run.iterations
            algo.shared_folder = run.path
            training.complete(start)
            plot_training(run.read_metrics(), run.path / "training.png")
            if recipe.run.evaluate:
                algo.rollout_queue.forget()  # the env runners are free to be asked
                rewards = algo.reward_group
                session = Session(SavedModels(algo.runners), algo.agent, algo.dataset, rewards)
                untrained = Path(algo.config.model_path)
                models = {"untrained": untrained, **trained_models(run)}
                compare(session, models, recipe, run.path, console)
        except OSError as error:
            training.raise_if_full(error)
            raise
        finally:
            algo.stop()
            run.close()
    return run


def _check_is_free(folder: Path) -> None:
    """Before anything is written there, not even a lock."""
    with failing_for(folder, "Give another --run-dir."):
        for name, what in FOREIGN.items():
            if (folder / name).is_file():
                raise ConfigError(f"{folder} is {what}: give another --run-dir.")


def _actors(recipe: Recipe) -> str:
    config = recipe.config
    return (
        f"{config.num_env_runners} vLLM env runner(s), {config.num_reward_actors} reward "
        f"actor(s), {max(1, config.num_learners)} DeepSpeed learner(s) with ZeRO-"
        f"{config.zero_stage}, {config.model_name} in {config.dtype}"
    )

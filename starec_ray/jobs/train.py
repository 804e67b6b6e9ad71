"""The main job: anchor, reinforce, save, evaluate, into a run directory."""

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.utils.metrics import EVALUATION_RESULTS
from rich.console import Console
from rich.markup import escape

from starec_ray.algorithm import STARec
from starec_ray.checkpoints.checkpoints import Checkpoints, is_full
from starec_ray.checkpoints.store import CheckpointStore
from starec_ray.cluster.connection import check_resources, start_ray
from starec_ray.cluster.failures import FailureEvent
from starec_ray.cluster.placement import actor_bundles
from starec_ray.config.identity import identity
from starec_ray.config.recipe import Recipe, resolved_sections
from starec_ray.data.store import MANIFEST as DATA_MANIFEST
from starec_ray.errors import CollapseError, ConfigError, StorageError
from starec_ray.evaluation.plots import plot_training
from starec_ray.evaluation.session import SavedModels, Session
from starec_ray.files import failing_for
from starec_ray.jobs.collapse import way_back
from starec_ray.jobs.evaluate import compare, trained_models
from starec_ray.jobs.inputs import check_before_start
from starec_ray.jobs.resume import (
    begin_afresh,
    bring_anchored_model,
    check_inputs_stay,
    is_finished,
    standing,
    starting_point,
)
from starec_ray.progress import phase
from starec_ray.run_dir import RunDir
from starec_ray.training.learner_calls import LearnersLostError
from starec_ray.training.recovery import Recovery

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
            identity(recipe.config),
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
        try:
            if checkpoint:  # only now: what goes would be missed if nothing could be started
                checkpoints.go_back_to(checkpoint)
            if not start:
                begin_afresh(run, checkpoints, overwrite=overwrite, resume=resume)
            run.write_config(resolved_sections(recipe))
            algo.failures.tell = functools.partial(_tell, run, console)
            algo.rollout_queue.end = recipe.run.iterations
            algo.shared_folder = run.path
            _train(algo, recipe, run, checkpoints, console, start)
            plot_training(run.read_metrics(), run.path / "training.png")
            if recipe.run.evaluate:
                algo.rollout_queue.forget()  # the env runners are free to be asked
                rewards = algo.reward_group
                session = Session(SavedModels(algo.runners), algo.agent, algo.dataset, rewards)
                untrained = Path(algo.config.model_path)
                models = {"untrained": untrained, **trained_models(run)}
                compare(session, models, recipe, run.path, console)
        except OSError as error:
            _raise_if_full(error, run)
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


def _train(
    algo: STARec,
    recipe: Recipe,
    run: RunDir,
    checkpoints: Checkpoints,
    console: Console,
    start: Path | None,
) -> None:
    """Both stages, from a checkpoint or the beginning; where learners are lost on the way, they are
    started again and it goes on from the newest checkpoint, unless that can't help any more."""

    def iterate() -> None:
        try:
            _iterate(algo, recipe, run, checkpoints, console)
        except LearnersLostError as error:
            _raise_if_full(error, run)
            raise
        except KeyboardInterrupt:
            told = standing(algo.training_iteration, checkpoints)
            console.print(f"[yellow]stopped:[/] {told}", highlight=False)
            raise

    recover = Recovery(
        lambda: algo.training_iteration, lambda: _go_back(algo, run, checkpoints.newest(), console)
    )
    if start:
        recover(lambda: _go_back(algo, run, start, console))
    recover(iterate)


def _raise_if_full(error: Exception, run: RunDir) -> None:
    if is_full(error, run.path):
        raise StorageError(
            f"the disk of {run.path} is full ({error}): make room, then --resume."
        ) from error


def _go_back(algo: STARec, run: RunDir, checkpoint: Path | None, console: Console) -> None:
    if checkpoint is None:
        algo.start_over()
    else:
        algo.restore_from_path(checkpoint)
        if algo.stage == "reinforce" and algo.anchor_updates:
            bring_anchored_model(run, checkpoint)
    run.rewind(algo.training_iteration)
    place = checkpoint or "there was no checkpoint yet"
    console.print(f"going on after iteration {algo.training_iteration}: {place}")


def _tell(run: RunDir, console: Console, event: FailureEvent) -> None:
    run.append_failure(event)
    name = f"{event.kind.replace('_', ' ')} {event.number}"
    if event.seconds is None:
        console.print(f"[yellow]{name} was lost:[/] {escape(event.cause)}", soft_wrap=True)
    else:
        console.print(f"{name} is back after {event.seconds:.1f} s")


def _iterate(
    algo: STARec, recipe: Recipe, run: RunDir, checkpoints: Checkpoints, console: Console
) -> None:
    """Both stages, from wherever the algorithm is."""
    line: dict[str, Any] = {}

    def is_due() -> bool:
        every = recipe.run.checkpoint_every
        return every > 0 and algo.training_iteration % every == 0

    begins = algo.stage == "anchor" or not checkpoints.all()
    if algo.stage == "anchor":
        with phase("anchor", algo.anchor_iterations - algo.training_iteration) as progress:
            while algo.stage == "anchor":
                line = _iteration(algo, run, checkpoints)
                progress.advance(note=_note(line))
                if is_due() and algo.stage == "anchor":
                    checkpoints.save(algo, _score(line, recipe))
    if begins:
        if algo.anchor_updates:  # else the anchor is the untrained model
            algo.save_model(run.anchored_model)
        checkpoints.save(algo, _score(line, recipe))
        line = {}
    titles = {item.item_id: item.title for item in algo.dataset.items.values()}
    with phase("reinforce", recipe.run.iterations - algo.iterations_done) as progress:
        while algo.iterations_done < recipe.run.iterations:
            line = _iteration(algo, run, checkpoints)
            _write_rollouts(algo, run, titles)
            progress.advance(note=_note(line))
            if is_due():
                checkpoints.save(algo, _score(line, recipe))
    if line and not is_due():
        checkpoints.save(algo, _score(line, recipe))
    algo.save_model(run.model)
    console.print(f"trained model: {run.model}")


def _score(line: Mapping[str, Any], recipe: Recipe) -> float | None:
    """What a checkpoint after this iteration is worth, if `evaluation_interval` had validation
    users asked; those that are asked after an epoch of the anchor may be others."""
    every = recipe.config.evaluation_interval
    if not line or not every or line["iteration"] % every:
        return None
    value = line.get("validation", {}).get(recipe.run.metric)
    return value if value is None or recipe.run.mode == "max" else -value


def _iteration(algo: STARec, run: RunDir, checkpoints: Checkpoints) -> dict[str, Any]:
    """One of either stage, and its line of metrics."""
    start = time.perf_counter()
    try:
        result = algo.train()
    except CollapseError as error:
        run.append_metrics({"iteration": algo.training_iteration + 1, **algo.report})
        assert algo.latest_update is not None
        batch = run.write_batch(algo.latest_update)
        raise CollapseError(
            f"the run has collapsed: {error}. The batch of that update lies in {batch}. "
            f"{way_back(algo, run, checkpoints)}"
        ) from error
    line = {
        "iteration": algo.training_iteration,
        **algo.report,
        **result.get(EVALUATION_RESULTS, {}),
        "seconds/iteration": time.perf_counter() - start,
    }
    run.append_metrics(line)
    return line


def _write_rollouts(algo: STARec, run: RunDir, titles: Mapping[str, str]) -> None:
    kept = algo.latest_rollouts
    assert kept is not None
    run.write_rollouts(
        algo.training_iteration,
        kept,
        rewards=kept["reward"],
        advantages=kept["advantage"],
        target_ranks=kept["target_rank"].to_pylist(),
        chosen=kept["chosen"].to_pylist(),
        titles=titles,
    )


def _note(line: dict[str, Any]) -> str:
    if line["stage"] == "anchor":
        parts = [f"loss {line.get('loss', math.nan):.3f}"]
        if "held_out_nll" in line:
            parts.append(f"NLL held out {line['held_out_nll']:.3f}")
        if users := line.get("validation"):
            parts.append(f"NDCG@10 {100 * users['ndcg@10']:.1f}")
            parts.append(f"malformed {100 * users['malformed_rate']:.0f} %")
        return ", ".join(parts)
    kl = f", KL {line['kl']:.4f}" if "kl" in line else ""
    return (
        f"reward {line['rank/reward']:+.3f}, NDCG@10 {100 * line['rank/ndcg@10']:.1f}, "
        f"malformed {100 * line['rank/malformed']:.0f} %{kl}"
    )


def _actors(recipe: Recipe) -> str:
    config = recipe.config
    return (
        f"{config.num_env_runners} vLLM env runner(s), {config.num_reward_actors} reward "
        f"actor(s), {max(1, config.num_learners)} DeepSpeed learner(s) with ZeRO-"
        f"{config.zero_stage}, {config.model_name} in {config.dtype}"
    )

"""The main job: anchor, reinforce, save, evaluate, into a run directory."""

import functools
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.utils.metrics import EVALUATION_RESULTS
from rich.console import Console
from rich.markup import escape

from starec_ray.algorithm import STARec
from starec_ray.checkpoints.checkpoints import Checkpoints, is_full
from starec_ray.checkpoints.files import LEARNERS, REFERENCE, progress_of
from starec_ray.checkpoints.store import CheckpointStore
from starec_ray.cluster.connection import check_resources, start_ray
from starec_ray.cluster.failures import FailureEvent, RepeatedLosses
from starec_ray.cluster.placement import actor_bundles
from starec_ray.config.identity import identity
from starec_ray.config.recipe import Recipe, changed_keys, resolved_sections
from starec_ray.data.dataset import Dataset
from starec_ray.data.store import MANIFEST as DATA_MANIFEST
from starec_ray.errors import CollapseError, ConfigError, StorageError
from starec_ray.evaluation.plots import plot_training
from starec_ray.evaluation.session import SavedModels, Session
from starec_ray.jobs.collapse import way_back
from starec_ray.jobs.evaluate import compare, trained_models
from starec_ray.jobs.plan import REMEDY, check_data, check_learnable
from starec_ray.progress import phase
from starec_ray.run_dir import EVALUATION, RunDir
from starec_ray.training.learner_calls import LearnersLostError


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
        checkpoint: the name of an earlier one to resume from; those after it are removed.

    Raises:
        ConfigError: if the folder holds a run already and neither is asked for, or is in use, or
            is a data folder, or the recipe can't be run, or isn't that of the run to resume.
        TooManyFailuresError, CollapseError, DeadlineError, StorageError: what ended the training.
    """
    if (run_path / DATA_MANIFEST).is_file():
        raise ConfigError(f"{run_path} is a data folder: give another --run-dir.")
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
        check_data(recipe, Dataset.load(recipe.config.data_path))
        check_learnable(recipe.config.model_name)
        start = _start(run, recipe, checkpoints, console, overwrite, resume, checkpoint)
        if start and not checkpoint and _is_finished(run, recipe, start):
            console.print(
                f"nothing to do: {run.path} has done its {recipe.run.iterations} iterations. "
                "To go on, give it more: run.iterations=…"
            )
            return run
        start_ray(recipe.run.ray)
        check_resources(actor_bundles(recipe.config), REMEDY)
        console.print(f"starting actors: {_actors(recipe)}")
        algo = recipe.config.build_algo()
        assert isinstance(algo, STARec)
        try:
            if checkpoint:  # only now: what goes would be missed if nothing could be started
                checkpoints.go_back_to(checkpoint)
            if not start:
                run.clear()
                if checkpoints.store:
                    checkpoints.store.clear()
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
        except (OSError, LearnersLostError) as error:
            if not is_full(error, run.path):
                raise
            raise StorageError(
                f"the disk of {run.path} is full ({error}): make room, then --resume."
            ) from error
        finally:
            algo.stop()
            run.close()
    return run


def _start(
    run: RunDir,
    recipe: Recipe,
    checkpoints: Checkpoints,
    console: Console,
    overwrite: bool,
    resume: bool,
    checkpoint: str,
) -> Path | None:
    """The checkpoint that the run goes on from; None starts it afresh, in an emptied folder."""
    if not resume:
        if (held := run.holds()) and not overwrite:
            raise ConfigError(
                f"{run.path} holds a run already ({', '.join(held)}): give another --run-dir, "
                "--resume it, or --overwrite."
            )
        store = checkpoints.store
        if store and (copies := store.names()) and not overwrite:
            raise ConfigError(
                f"{store.address} holds a run's checkpoints already ({', '.join(copies)}): give "
                "another run.checkpoint_storage, --resume it, or --overwrite."
            )
        return None
    checkpoints.bring()
    begun = run.config.exists()
    if not begun and not checkpoints.all():
        raise ConfigError(f"{run.path} holds no run to resume: leave --resume out.")
    if begun and (changed := changed_keys(run.read_config(), resolved_sections(recipe))):
        raise ConfigError(
            f"{run.path} was begun with another recipe: {'; '.join(changed)}. Resume it with "
            f"its own ({run.config}), or start another run."
        )
    if checkpoint:
        return checkpoints.named(checkpoint)
    if (newest := checkpoints.newest()) is None:
        console.print(f"{run.path} has no checkpoint yet: it starts over.")
    return newest


def _is_finished(run: RunDir, recipe: Recipe, checkpoint: Path) -> bool:
    trained = progress_of(checkpoint)["iterations_done"] >= recipe.run.iterations
    evaluated = (run.path / EVALUATION).exists() or not recipe.run.evaluate
    return trained and run.model.exists() and evaluated


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
    go_back = start is not None
    repeated_losses = RepeatedLosses()
    while True:
        since = algo.training_iteration
        try:
            if go_back:
                _go_back(algo, run, start, console)
                since = algo.training_iteration
            try:
                _iterate(algo, recipe, run, checkpoints, console)
            except KeyboardInterrupt:
                console.print(f"[yellow]stopped:[/] {_stands(algo, checkpoints)}", highlight=False)
                raise
            return
        except LearnersLostError as error:
            if is_full(error, run.path):
                raise
            repeated_losses.lost(since, algo.training_iteration, error)
            start, go_back = checkpoints.newest(), True


def _stands(algo: STARec, checkpoints: Checkpoints) -> str:
    """How far a run is that is being ended, and from where it can go on."""
    done = f"{algo.training_iteration} iterations are done"
    try:
        newest = checkpoints.newest()
    except ConfigError as error:
        return f"{done}; {error}"
    if newest is None:
        return f"{done}, none is in a checkpoint yet: --resume starts over."
    return f"{done}; --resume goes on after iteration {progress_of(newest)['training_iteration']}."


def _go_back(algo: STARec, run: RunDir, checkpoint: Path | None, console: Console) -> None:
    if checkpoint is None:
        algo.start_over()
    else:
        algo.restore_from_path(checkpoint)
        _bring_anchored_model(algo, run, checkpoint)
    run.rewind(algo.training_iteration)
    place = checkpoint or "there was no checkpoint yet"
    console.print(f"going on after iteration {algo.training_iteration}: {place}")


def _bring_anchored_model(algo: STARec, run: RunDir, checkpoint: Path) -> None:
    """On another machine than the run's first, stage one's model comes out of the checkpoint, which
    has it for the KL term."""
    reference = checkpoint / LEARNERS / REFERENCE
    if algo.stage == "reinforce" and reference.is_dir() and not run.anchored_model.exists():
        part = run.anchored_model.with_name(f"{run.anchored_model.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(reference, part)
        part.rename(run.anchored_model)


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
    every = recipe.run.checkpoint_every
    begins = algo.stage == "anchor" or not checkpoints.all()
    line: dict[str, Any] = {}
    if algo.stage == "anchor":
        with phase("anchor", algo.anchor_iterations) as progress:
            while algo.stage == "anchor":
                line = _iteration(algo, run, checkpoints)
                progress.advance(note=_note(line))
                if every and algo.training_iteration % every == 0 and algo.stage == "anchor":
                    checkpoints.save(algo, _score(line, recipe))
    if begins:
        algo.save_model(run.anchored_model)
        checkpoints.save(algo, _score(line, recipe))
        line = {}
    titles = {item.item_id: item.title for item in algo.dataset.items.values()}
    with phase("reinforce", recipe.run.iterations - algo.iterations_done) as progress:
        while algo.iterations_done < recipe.run.iterations:
            line = _iteration(algo, run, checkpoints)
            _write_rollouts(algo, run, titles)
            progress.advance(note=_note(line))
            if every and algo.training_iteration % every == 0:
                checkpoints.save(algo, _score(line, recipe))
    if line and (not every or algo.training_iteration % every):
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

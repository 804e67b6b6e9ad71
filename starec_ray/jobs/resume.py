"""Where a run begins: afresh, or after which of its checkpoints."""

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.checkpoints.files import LEARNERS, REFERENCE, progress_of
from starec_ray.checkpoints.store import CheckpointStore
from starec_ray.config.recipe import Recipe, changed_keys, resolved_sections, sections_of
from starec_ray.errors import ConfigError
from starec_ray.files import put_in_place
from starec_ray.run_dir import EVALUATION, RunDir
from starec_ray.training.traces import trace_files


def check_inputs_stay(run: RunDir, config: Any) -> None:
    """
    Raises:
        ConfigError: what the run learns from lies in what it replaces as it begins.
    """
    for path in (config.data_path, config.model_path, *trace_files(config.traces)):
        if run.would_lose(path):
            raise ConfigError(
                f"the run begins with {path}, which it would remove from its own folder: give "
                "another --run-dir, or move that elsewhere."
            )


def starting_point(
    run: RunDir,
    recipe: Recipe,
    checkpoints: Checkpoints,
    console: Console,
    overwrite: bool,
    resume: bool,
    checkpoint: str,
) -> Path | None:
    """The checkpoint that the run goes on from; None starts it afresh, see `begin_afresh`."""
    if not resume:
        if (held := run.holds()) and not overwrite:
            raise ConfigError(
                f"{run.path} holds a run already ({', '.join(held)}): give another --run-dir, "
                "--resume it, or --overwrite."
            )
        if checkpoints.store and not overwrite:
            _check_is_nobodys(checkpoints.store)
        return None
    begun = run.config.exists()
    before = sections_of(run.read_config(), run.config) if begun else {}
    if changed := changed_keys(before, resolved_sections(recipe)):
        raise ConfigError(
            f"{run.path} was begun with another recipe: {'; '.join(changed)}. Resume it with "
            f"its own ({run.config}), or start another run."
        )
    checkpoints.bring()
    if not begun and not checkpoints.all():
        raise ConfigError(f"{run.path} holds no run to resume: leave --resume out.")
    if checkpoint:
        return checkpoints.named(checkpoint)
    if (newest := checkpoints.newest()) is None:
        console.print(f"{run.path} has no checkpoint yet: it starts over.")
    return newest


def begin_afresh(run: RunDir, checkpoints: Checkpoints, *, overwrite: bool, resume: bool) -> None:
    """Empties the run's folder, and makes the storage its own.

    Raises:
        ConfigError: another run has begun with that storage meanwhile.
        StorageError: something can't be removed, or the storage can't be written.
    """
    if checkpoints.store:  # first: where it refuses, the run's folder is as it was
        if overwrite:
            checkpoints.store.clear()
        elif not resume:
            _check_is_nobodys(checkpoints.store)
        checkpoints.claim_store()
    run.clear()


def _check_is_nobodys(store: CheckpointStore) -> None:
    copies = store.names()
    if copies or store.owner() is not None:
        raise ConfigError(
            f"{store.address} holds a run's checkpoints already ({', '.join(copies) or 'none yet'})"
            ": give another run.checkpoint_storage, --resume it, or --overwrite."
        )


def is_finished(run: RunDir, recipe: Recipe, checkpoint: Path) -> bool:
    """Whether nothing is left to do after a checkpoint."""
    trained = progress_of(checkpoint)["iterations_done"] >= recipe.run.iterations
    evaluated = (run.path / EVALUATION).exists() or not recipe.run.evaluate
    return trained and run.model.exists() and evaluated


def standing(done: int, checkpoints: Checkpoints) -> str:
    """How far a run that is being stopped has come, and what --resume will go on from."""
    told = f"{done} iterations are done"
    try:
        newest = checkpoints.newest()
    except ConfigError as error:
        return f"{told}; {error}"
    if newest is None:
        return f"{told}, none is in a checkpoint yet: --resume starts over."
    return f"{told}; --resume goes on after iteration {progress_of(newest)['training_iteration']}."


def bring_anchored_model(run: RunDir, checkpoint: Path) -> None:
    """On another machine than the run's first, stage one's model comes out of the checkpoint, which
    has it for the KL term."""
    reference = checkpoint / LEARNERS / REFERENCE
    if reference.is_dir() and not run.anchored_model.exists():
        part = run.anchored_model.with_name(f"{run.anchored_model.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(reference, part)
        put_in_place(part, run.anchored_model)

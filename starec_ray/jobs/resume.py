"""Where a run begins: afresh, or after which of its checkpoints."""

import shutil
from pathlib import Path

from rich.console import Console

from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.checkpoints.files import LEARNERS, REFERENCE, progress_of
from starec_ray.config.recipe import Recipe, changed_keys, resolved_sections
from starec_ray.errors import ConfigError
from starec_ray.files import put_in_place
from starec_ray.run_dir import EVALUATION, RunDir


def starting_point(
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

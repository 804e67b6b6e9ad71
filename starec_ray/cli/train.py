"""`starec train RECIPE.yaml`: anchor, reinforce, save, evaluate."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from starec_ray.cli.arguments import Overrides
from starec_ray.errors import ConfigError


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe; ready-made ones are in recipes/.")],
    overrides: Overrides = None,
    run_dir: Annotated[
        Path, typer.Option(help="Folder for everything that the run writes.")
    ] = Path("runs/latest"),
    traces: Annotated[
        list[str] | None,
        typer.Option(
            help="Traces for the anchor: a table, 'bundled' or 'template', with or without kinds "
            "(FILE:rank,reflect); may be given more than once."
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the run in RUN_DIR and in run.checkpoint_storage."
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the run in RUN_DIR from its newest checkpoint."),
    ] = False,
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="CHECKPOINT",
            help="With --resume: an earlier checkpoint, such as iteration-00030 (both stages "
            "counted). Those after it are removed.",
        ),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check recipe, data and model, print the plan, and start nothing; RUN_DIR isn't "
            "looked at.",
        ),
    ] = False,
) -> None:
    """Train an agent from a recipe: stage one (anchor), stage two (reinforcement), evaluation.

    RUN_DIR then holds config.yaml, metrics.jsonl, rollouts/, tensorboard/,
    checkpoints/, anchored_model/, model/ and evaluation.json.

    RAY_ADDRESS names a running cluster to join (auto: this node's); without it a
    local Ray is started.
    """
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run, --overwrite empties it: give one of them.")
    if from_ and not resume:
        raise ConfigError("--from says which checkpoint --resume goes on from: give both.")
    from starec_ray.config.recipe import load_recipe  # loads Ray and torch, seconds

    console = Console()
    given = list(overrides or [])
    if traces:
        given.append(f"anchor.traces={json.dumps(traces)}")
    loaded = load_recipe(recipe, given)
    if dry_run:
        from starec_ray.jobs.plan import print_plan

        print_plan(loaded, console)
        return
    from starec_ray.jobs import train as job

    run = job.train(loaded, run_dir, console, overwrite=overwrite, resume=resume, checkpoint=from_)
    starec = shlex.quote(sys.argv[0])
    folder = shlex.quote(str(run.path))
    plots = ["training.png"] + ["policies.png"] * loaded.run.evaluate
    more = [o for o in given if not o.split("=")[0].endswith("iterations")]
    if not isinstance(lr := loaded.config.lr, int | float) and not lr[-1][1]:
        more.append(f"training.lr={lr[0][1] / 10:g}")  # its schedule has come to its end
    again = shlex.join([str(recipe), *more, f"run.iterations={2 * loaded.run.iterations}"])
    told = f"""
Look at:  {", ".join(shlex.quote(f"{run.path}/{plot}") for plot in plots)}
          {starec} rollouts {folder} --best   (what the agent says)
          tensorboard --logdir {shlex.quote(f"{run.path}/tensorboard")}
Try next: {starec} train {again} --run-dir {folder} --resume"""
    console.print(told, markup=False, soft_wrap=True, highlight=False)

"""`starec tune RECIPE.yaml --space SPACE.yaml`: a sweep over a recipe's fields."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from starec_ray.cli.arguments import Overrides


def tune(
    recipe: Annotated[Path, typer.Argument(help="The recipe that all trials share.")],
    space: Annotated[
        Path, typer.Option(help="What varies: a search space, such as those in recipes/spaces/.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="Folder for trials, table, plots and the best recipe.")
    ] = Path("runs/sweep"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume a stopped sweep; finished trials stay, the others may get other actors, "
            "deadlines and limits. Tune unpickles files in OUT, which may run any code: resume "
            "only folders of your own.",
        ),
    ] = False,
) -> None:
    """Search a recipe's settings with Ray Tune: ASHA, PBT or Optuna, on a laptop or a cluster.

    Trials are compared by run.metric (ndcg@10 by default) on validation users,
    who are neither trained nor tested on, after every iteration of every trial. A
    space names fields of the recipe and the values to search; its section sweep may
    say how, and is by default:

        sweep:
          num_samples: 8        # trials; with grid fields for each of their combinations
          scheduler: asha       # stops those behind; pbt: they copy better ones; none
          searcher: random      # or optuna, which models the results so far
          grace_iterations: 2   # before asha stops one, or between two changes of pbt
          max_concurrent: 0     # trials at a time; 0: as many as the cluster holds
        space:
          training.lr: {loguniform: [1.0e-6, 1.0e-4]}
          training.group_size: {choice: [4, 8]}

    Values are drawn by uniform, loguniform or randint between two ends (randint
    without the upper one), or by choice from a list; grid tries each of a list. pbt
    varies training and rewards alone.

    At the end OUT holds trials.csv, sweep.png, best.yaml (for `starec train`)
    and best_model/.
    """
    from starec_ray.config.recipe import load_recipe  # loads Ray and torch, seconds
    from tune.space import load_space
    from tune.sweep import sweep

    console = Console()
    loaded = load_recipe(recipe, overrides or [])
    sweep(loaded, load_space(space, loaded), out, console, resume=resume)
    again = [sys.argv[0], "train", f"{out}/best.yaml", "--run-dir", f"{out}/best"]
    told = f"Try next:   {shlex.join(again)}"
    console.print(told, markup=False, soft_wrap=True, highlight=False)

"""`starec tune RECIPE.yaml --space SPACE.yaml`: a sweep over a recipe's fields."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def tune(
    recipe: Annotated[Path, typer.Argument(help="What all trials have in common.")],
    space: Annotated[
        Path, typer.Option(help="What varies: a search space; ready ones lie in recipes/spaces/.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Replace keys of the recipe, e.g. run.iterations=20."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where trials, table, plots and the best recipe go.")
    ] = Path("runs/sweep"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a sweep that was stopped; finished trials stay. Tune unpickles what "
            "lies in OUT, which may run any code: only folders of your own.",
        ),
    ] = False,
) -> None:
    """Search a recipe's settings with Ray Tune: ASHA, PBT or Optuna, on a laptop or a cluster.

    Trials are compared by run.metric (ndcg@10) on validation users, who are neither trained nor
    tested on. A space names fields of the recipe and where to look:

        space: {training.lr: {loguniform: [1.0e-6, 1.0e-4]}, training.group_size: {choice: [4, 8]}}

    At the end OUT holds trials.csv, sweep.png, best.yaml (for `starec train`) and best_model/.
    """
    from starec_ray.config.recipe import load_recipe  # loads Ray and torch, seconds
    from tune.space import load_space
    from tune.sweep import sweep

    console = Console()
    loaded = load_recipe(recipe, overrides or [])
    sweep(loaded, load_space(space, loaded), out, console, resume=resume)
    told = f"Try next:   {sys.argv[0]} train {out}/best.yaml --run-dir {out}/best"
    console.print(told, markup=False, soft_wrap=True, highlight=False)

"""`starec doctor`: what a machine or a cluster is missing, before a run finds it out."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from starec_ray.cli.arguments import Overrides
from starec_ray.errors import ConfigError


def doctor(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="Also check what this recipe needs, its data and its model."),
    ] = None,
    overrides: Overrides = None,
    storage: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that all nodes should share; may be given more than once."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Without a recipe: a prepared data folder to check.")
    ] = None,
    model: Annotated[str, typer.Option(help="Without a recipe: a model to check.")] = "",
    may_grow: Annotated[
        bool,
        typer.Option("--may-grow", help="Only warn of what the cluster lacks: it may autoscale."),
    ] = False,
) -> None:
    """Examine the cluster at RAY_ADDRESS from each of its nodes, or this machine.

    Checks versions, devices, object store, ports between the nodes and shared
    storage; with a recipe also its data and model as each node sees them, and
    whether the cluster has what it wants. Prints a line per check, green or
    with the remedy; the exit code is 1 if anything is red.
    """
    from starec_ray.config.recipe import load_recipe
    from starec_ray.doctor.examine import examine, print_finding  # loads Ray and torch, seconds

    if recipe and (data or model):
        raise ConfigError("a recipe names its data and model: leave --data and --model out.")
    console = Console()
    loaded = load_recipe(recipe, overrides or []) if recipe else None
    found = []
    for finding in examine(loaded, storage or [], data=data, model=model, may_grow=may_grow):
        print_finding(finding, console)
        found.append(finding.level)
    if "bad" in found:
        raise typer.Exit(1)

"""`starec evaluate`: all policies over the same test cases."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from starec_ray.errors import ConfigError
from starec_ray.run_dir import RunDir


def evaluate(
    run: Annotated[
        Path | None, typer.Option(help="A run folder: its models, data and settings.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A saved model instead, named 'reinforced' in the table.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Other prepared data than the run's.")] = None,
    cases: Annotated[int | None, typer.Option(help="So many test users; 0 takes all.")] = None,
    split: Annotated[str, typer.Option(help="test, validation or train users.")] = "test",
    slow: Annotated[
        bool | None,
        typer.Option("--slow/--no-slow", help="With slow thinking too (three times the work)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where evaluation.json goes; the run's folder by default.")
    ] = None,
) -> None:
    """Compare policies: random, popularity, untrained, anchored, reinforced.

    NDCG, hit rate and MRR with 95 % bootstrap intervals, paired differences, the malformed
    rate, and the split by user activity: on the screen, as evaluation.json and as plots.
    """
    from starec_ray.evaluation.run import evaluate_models, evaluate_run  # loads Ray and torch
    from starec_ray.recipe import build

    if run is None and (model is None or data is None or out is None):
        raise ConfigError("give --run RUN, or --model, --data and --out together.")
    sections: dict = RunDir(run, create=False).read_config() if run else {"model": {"name": model}}
    if data is not None:
        sections.setdefault("data", {})["path"] = str(data)
    settings = sections.setdefault("run", {})
    if cases is not None:
        settings["evaluation_cases"] = cases
    if slow is not None:
        settings["evaluate_slow_thinking"] = slow
    recipe = build(sections)
    console = Console()
    if run is not None and model is None:
        found = RunDir(run, create=False)
        if out is None:
            evaluate_run(found, recipe, console, split)
        else:
            folders = {"anchored": found.anchored_model, "reinforced": found.model}
            evaluate_models(folders, recipe, out, console, split)
        return
    evaluate_models({"reinforced": Path(str(model))}, recipe, out or Path(str(run)), console, split)

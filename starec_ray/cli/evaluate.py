"""`starec evaluate`: all policies over the same test cases."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from starec_ray.cli.arguments import Overrides
from starec_ray.errors import ConfigError
from starec_ray.files import local_path
from starec_ray.run_dir import RunDir

MADE_BY = ("config.yaml", "best.yaml")  # beside a model: of a run, of a sweep


def evaluate(
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option(help="A run folder, for its models, data and settings.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A saved model instead of a run's, 'model' in the table.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="With --model: the recipe it was trained with, for its prompts, untrained model, "
            "seed and number of users. Default: the recipe that lies beside it (a run's "
            "config.yaml, a sweep's best.yaml)."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A prepared data folder, instead of the run's; required without --run."),
    ] = None,
    cases: Annotated[
        int | None,
        typer.Option(min=0, help="Users to evaluate on; 0 takes all. Default: the recipe's."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which users: test, validation or train.")] = "test",
    slow: Annotated[
        bool | None,
        typer.Option(
            "--slow/--no-slow",
            help="Evaluate slow thinking too (about four times the work in all). Default: as the "
            "recipe says.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for evaluation.json. Default: the run's, whose evaluation is replaced; "
            "required with --model, --data, KEY=VALUE or a --split other than test."
        ),
    ] = None,
) -> None:
    """Compare policies: random, popularity, untrained, anchored, reinforced.

    KEY=VALUE changes how the models are asked, e.g. max_rank_tokens=96 where
    these data have longer lists.

    Shows NDCG, hit rate and MRR with 95 % bootstrap intervals, paired
    differences, the rate of malformed rankings, and a breakdown by user activity:
    on the screen, as evaluation.json and as plots.
    """
    from starec_ray.config.recipe import build, load_recipe, override
    from starec_ray.jobs.evaluate import evaluate_models, trained_models  # loads Ray and torch

    if run is None and (model is None or data is None):
        raise ConfigError("give --run RUN, or --model and --data.")
    if model is not None and out is None:
        raise ConfigError("--model needs --out, a folder for its evaluation.json.")
    if out is None and (split != "test" or data is not None or overrides):
        raise ConfigError(
            "--split, --data and KEY=VALUE need --out, a folder for their evaluation.json: the "
            "run's own is of its test users, as it was trained."
        )
    if run is not None and recipe is not None:
        raise ConfigError("a run has its settings: leave --recipe out, or --run.")
    console = Console()
    if model is not None and run is None and recipe is None:
        folder = Path(model).absolute()
        beside = (folder.parent / name for name in MADE_BY if folder.is_dir())
        recipe = next((path for path in beside if path.is_file()), None)
        if recipe:
            console.print(f"settings: {recipe}", soft_wrap=True)
        else:
            console.print(
                "[yellow]no --recipe, and none beside the model:[/] prompts and replies are those "
                "of the default settings, which it may not have been trained with.",
                soft_wrap=True,
            )
    found = RunDir(run, create=False) if run is not None else None
    sections: dict = {"model": {"name": model}}
    if found is not None:
        sections = found.read_config()
    elif recipe is not None:
        sections = load_recipe(recipe).sections
    trained_with = sections.get("data", {}).get("path", "")
    for given in overrides or []:
        override(sections, given)
    if data is not None:
        sections.setdefault("data", {})["path"] = str(data)
    if sections["data"]["path"] == trained_with:
        trained_with = ""
    settings = sections.setdefault("run", {})
    if cases is not None:
        settings["evaluation_cases"] = cases
    if slow is not None:
        settings["evaluate_slow_thinking"] = slow
    if model is not None:
        models = {"model": Path(model)}
    else:
        assert found is not None
        models, out = trained_models(found), out or found.path
    assert out is not None
    local_path(out)
    # Without a recipe nothing says what the model was before its training.
    known = found is not None or recipe is not None
    evaluate_models(
        models,
        build(sections),
        out,
        console,
        split,
        untrained=known,
        trained_with=trained_with,
    )

"""`starec data`: make a data folder from published files, and look into one."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from starec_ray.cli.terminal import printable
from starec_ray.data.dataset import Dataset
from starec_ray.data.prepare import DEFAULTS, SIMULATED_USERS, SOURCES
from starec_ray.data.prepare import prepare as prepare_folder
from starec_ray.data.protocol import SPLITS, Protocol

# Counts that are shown where there is something to count.
_IF_ANY = {
    "unplaced_interactions": "interactions left out, at no known place in a user's sequence",
    "given_lists_without_user": "published candidate lists unused, of users without interactions",
    "given_lists_without_case": "published candidate lists unused, of users without cases",
    "given_candidates_without_item": "published candidates dropped, not among the items",
    "given_candidates_touched": "published candidates dropped, the user interacted with them",
    "given_candidates_repeated": "published candidates dropped, named like another of the list",
    "given_candidates_not_needed": "published candidates not needed",
    "unreadable_years": "items whose year is none, left without one",
}

app = typer.Typer(no_args_is_help=True, help="Make a data folder, or inspect one.")


def _protocol_option(name: str, help_text: str) -> Any:
    """An option for a field of `Protocol`, its help ending in the defaults of each layout."""
    usual = getattr(Protocol(), name)
    theirs = [(_words(key), getattr(its, name)) for key, its in DEFAULTS.items()]
    others = [f"{words} {value:g}" for words, value in theirs if value != usual]
    also = f" ({', '.join(others)})" if others else ""
    return typer.Option(help=f"{help_text} Default: {usual:g}{also}.")


def _words(layout: str) -> str:
    return layout if layout in SOURCES else layout.replace("-", " ")


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(help=f"One of {', '.join(SOURCES)}. synthetic needs no files."),
    ],
    out: Annotated[Path, typer.Option(help="The data folder to write.")],
    folder: Annotated[
        Path | None, typer.Option("--source", help="The folder that holds the published files.")
    ] = None,
    min_user_interactions: Annotated[
        int | None,
        _protocol_option(
            "min_user_interactions",
            "Drop users with fewer interactions, repeating until users and items have enough.",
        ),
    ] = None,
    min_item_interactions: Annotated[
        int | None,
        _protocol_option("min_item_interactions", "Drop items with fewer interactions, likewise."),
    ] = None,
    max_history: Annotated[
        int | None,
        _protocol_option("max_history", "Newest interactions to keep before each target."),
    ] = None,
    positive_above: Annotated[
        float | None,
        _protocol_option(
            "positive_above",
            "Ratings above this are positive; without ratings every interaction is.",
        ),
    ] = None,
    train_users: Annotated[
        int | None, _protocol_option("train_users", "Users to train on.")
    ] = None,
    validation_users: Annotated[
        int | None, _protocol_option("validation_users", "Users to validate on.")
    ] = None,
    test_users: Annotated[int | None, _protocol_option("test_users", "Users to test on.")] = None,
    negatives: Annotated[
        int | None,
        _protocol_option(
            "negatives", "Candidates besides the target: items that the user never interacted with."
        ),
    ] = None,
    train_negatives: Annotated[
        int | None,
        typer.Option(
            help="Negatives for training users; fewer make training faster. Default: --negatives."
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        _protocol_option("rounds", "Consecutive cases per user; the last is evaluated."),
    ] = None,
    seed: Annotated[int | None, _protocol_option("seed", "Seed for everything random.")] = None,
    simulated_users: Annotated[
        int, typer.Option(min=1, help="Users to simulate (synthetic only).")
    ] = SIMULATED_USERS,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Skip unreadable rows, and count them.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the data folder at --out.")
    ] = False,
) -> None:
    """Turn published files into a data folder of Parquet tables.

    Interactions are ordered by timestamp, ties by file order. The same files,
    flags and seed give the same bytes.
    """
    console = Console(stderr=True)
    with console.status("starting") as status:
        report = prepare_folder(
            source,
            out,
            folder=folder,
            force=force,
            skip_bad_rows=skip_bad_rows,
            simulated_users=simulated_users,
            say=status.update,
            min_user_interactions=min_user_interactions,
            min_item_interactions=min_item_interactions,
            max_history=max_history,
            positive_above=positive_above,
            train_users=train_users,
            validation_users=validation_users,
            test_users=test_users,
            negatives=negatives,
            train_negatives=train_negatives,
            rounds=rounds,
            seed=seed,
        )
    _print_folder(report.out)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A folder written by `starec data prepare`.")],
) -> None:
    """Print what a data folder holds."""
    _print_folder(folder)


def _print_folder(folder: Path) -> None:
    dataset = Dataset.load(folder)
    counts = dataset.manifest["counts"]
    facts = Table("what", "value", title=escape(str(folder)), title_justify="left")
    facts.add_row("source", dataset.manifest["source"])
    facts.add_row("seed", str(dataset.manifest["seed"]))
    for name in ("users", "items", "interactions"):
        facts.add_row(name, f"{counts[name]:,}")
    dropped = {
        "unreadable": sum(counts["skipped_bad_rows"].values()),
        "without a catalog entry": counts["interactions_without_item"],
        "repeated": counts["repeated_interactions"],
    }
    for reason, number in dropped.items():
        if number:
            facts.add_row(f"rows dropped, {reason}", f"{number:,}")
    if unrated := counts.get("interactions_without_rating"):
        every = unrated == counts["interactions"]
        which = "every interaction counts" if every else f"{unrated:,} interactions count"
        facts.add_row("no ratings", f"{which} as positive")
    for name, what in _IF_ANY.items():
        if number := counts.get(name):
            facts.add_row(what, f"{number:,}")
    if "negatives_given" in counts:
        given, drawn = counts["negatives_given"], counts["negatives_drawn"]
        facts.add_row("negatives", f"{given:,} from the published lists, {drawn:,} drawn")
    candidates: dict[str, int] = {}
    for split in SPLITS:
        cases = [dataset.case(case_id) for case_id in dataset.case_ids(split)]
        users = len({case.user_id for case in cases})
        history = sum(len(case.history) for case in cases) / max(len(cases), 1)
        facts.add_row(
            f"{split} cases", f"{len(cases):,} ({users:,} users, {history:.1f} items of history)"
        )
        if cases:
            candidates[split] = len(cases[-1].candidates)
    sizes = ", ".join(f"{split} {size}" for split, size in candidates.items())
    facts.add_row("candidates a case", sizes)
    tags = Counter(tag for item in dataset.items.values() for tag in item.tags)
    frequent = ", ".join(tag for tag, _ in tags.most_common(5))
    facts.add_row("most frequent tags", escape(printable(frequent)) or "none")
    top = sorted(dataset.items.values(), key=lambda item: -item.popularity)[:3]
    popular = "; ".join(f"{item.title} ({item.popularity:,})" for item in top)
    facts.add_row("most popular", escape(printable(popular)))
    Console().print(facts)

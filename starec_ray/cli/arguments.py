"""Arguments that several commands take."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override keys of the recipe, e.g. training.lr=1e-5 or lr=1e-5.",
    ),
]

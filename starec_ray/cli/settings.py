"""`starec settings [WORD]`: what a recipe may hold."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from starec_ray.errors import ConfigError


def settings(
    word: Annotated[
        str, typer.Argument(help="Only settings with this word in their name or meaning.")
    ] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All settings as tables, as in docs/settings.md.")
    ] = False,
) -> None:
    """Print the settings of a recipe: their meanings, defaults and allowed values.

    Each can be given on the command line: starec train RECIPE.yaml training.lr=1e-5.
    """
    from starec_ray.config import reference  # loads Ray and torch, seconds

    if markdown and word:
        raise ConfigError("--markdown prints all settings: leave the word out.")
    if markdown:
        print(reference.as_markdown(), end="")
        return
    found = reference.settings(word)
    if not found:
        raise ConfigError(f"no setting mentions {word!r}; without a word all are explained.")
    console = Console(highlight=False)
    section = ""
    for one in found:
        if one.section != section:
            section = one.section
            console.print(f"\n[bold]{section}[/]  {escape(reference.summary(section))}")
        allowed = escape(one.allowed.replace("`", ""))
        console.print(f"  [cyan]{one.key}[/] = {escape(one.default)}  [dim]({allowed})[/]")
        console.print(Padding(escape(one.text), (0, 0, 0, 6)))

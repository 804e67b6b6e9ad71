"""The command `starec`."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from starec_ray.cli import data
from starec_ray.cli.distill import distill
from starec_ray.cli.doctor import doctor
from starec_ray.cli.evaluate import evaluate
from starec_ray.cli.rollouts import rollouts
from starec_ray.cli.settings import settings
from starec_ray.cli.submit import submit
from starec_ray.cli.train import train
from starec_ray.cli.tune import tune
from starec_ray.errors import STARecError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, tune and evaluate slow-thinking recommender agents. "
    "Start with: starec data prepare synthetic --out runs/demo-data --negatives 7, then starec "
    "train recipes/demo.yaml.",
)
app.add_typer(data.app, name="data")
app.command()(distill)
app.command()(train)
app.command()(tune)
app.command()(evaluate)
app.command()(rollouts)
app.command()(settings)
app.command()(doctor)
app.command(
    # What follows the submitted command is that command's.
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    }
)(submit)


def main() -> None:
    """Runs the command; an error that the user can mend is printed without a stack trace."""
    try:
        app()
    except STARecError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)

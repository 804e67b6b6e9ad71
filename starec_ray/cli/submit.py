"""`starec submit COMMAND …`: a command on a running cluster, followed from here."""

import asyncio
import os
from typing import Annotated

import typer
from rich.console import Console

from starec_ray.errors import ConfigError, STARecError

COMMANDS = ("train", "tune", "distill", "evaluate", "doctor")
INTERRUPTED = 130


def submit(
    ctx: typer.Context,
    command: Annotated[
        str, typer.Argument(metavar="COMMAND ...", help=f"One of {', '.join(COMMANDS)}.")
    ],
    address: Annotated[
        str | None,
        typer.Option(
            help="The head's dashboard, http://HOST:8265. Default: RAY_API_SERVER_ADDRESS, else "
            "RAY_ADDRESS."
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An environment variable to pass on to the job, such as HF_TOKEN; the "
            "cluster's dashboard shows it.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Let the doctor check first; anything red ends the job.")
    ] = True,
    follow: Annotated[
        bool, typer.Option(help="Show the log until the job ends; Ctrl-C leaves it running.")
    ] = True,
) -> None:
    """Run a command on a cluster as a Ray job that keeps running if this machine disconnects.

        starec submit train RECIPE.yaml data.path=/mnt/shared/data --run-dir /mnt/shared/run

    Options of its own stand before COMMAND: starec submit --env HF_TOKEN train …
    The recipe (and the space) travel with the job; everything else is named by
    absolute paths on storage that every node sees, and the program is the one
    installed on the cluster.
    """
    if command not in COMMANDS:
        raise ConfigError(f"{command!r} can't be submitted; choose {', '.join(COMMANDS)}.")
    from starec_ray.jobs import submit as jobs  # loads Ray and torch, seconds

    assert ctx.parent
    known = getattr(ctx.parent.command, "commands")[command]  # noqa: B009
    parsed = known.make_context(f"starec submit {command}", list(ctx.args))
    job = jobs.make_job(command, ctx.args, parsed.params)
    console = Console()
    variables = {"PYTHONUNBUFFERED": "1", "COLUMNS": str(console.width)}
    for name in env or []:
        if name not in os.environ:
            raise ConfigError(f"--env {name}: there is no such variable here.")
        variables[name] = os.environ[name]
    client = jobs.connect(address)
    job_id = jobs.start(client, job, variables, checked=check)
    server = client.get_address()
    ways = (
        f"follow it: ray job logs --address {server} --follow {job_id}\n"
        f"stop it:   ray job stop --address {server} {job_id}"
    )
    console.print(f"job:       {job_id}\n{ways}", soft_wrap=True, highlight=False)
    if not follow:
        return
    try:
        status = asyncio.run(jobs.follow(client, job_id, console))
    except KeyboardInterrupt:
        console.print(f"\nthe job goes on.\n{ways}", soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    if status != "SUCCEEDED":
        info = client.get_job_info(job_id)
        raise STARecError(f"job {job_id} {status.lower()}: {info.message or 'see its log above'}")
    console.print(f"job {job_id} is done.", highlight=False)

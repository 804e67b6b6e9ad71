"""A command as a job on a running cluster: what travels with it, what has to lie there already."""

import asyncio
import json
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from ray.exceptions import AuthenticationError, RpcError
from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

from starec_ray.cluster.connection import TOKEN_REMEDY, check_answers, cluster_named
from starec_ray.config.recipe import Recipe, load_recipe
from starec_ray.errors import ConfigError, STARecError
from starec_ray.training.traces import BUNDLED_TRACES, TEMPLATE, trace_files

# Parameters of the commands: what the job brings along, and where it writes.
TRAVELLING = ("recipe", "space")
WRITTEN = ("run_dir", "out", "run", "storage")
AGENT_TIMEOUT_S = 60.0  # a cluster that has just started takes no jobs yet
RECONNECT_TIMEOUT_S = 600.0
RECONNECT_EVERY_S = 2.0


@dataclass(frozen=True)
class Job:
    """A command that runs in a folder of its own on the cluster's head.

    Attributes:
        arguments: the command and its arguments, as the job sees its files.
        files: place in the job's folder → file of this machine.
        storage: folders that the command writes to.
        examined: what the doctor looks at beside the storage, as arguments: the recipe and the
            keys replaced, else data and model.
    """

    arguments: list[str]
    files: dict[str, Path]
    storage: list[str]
    examined: list[str]

    def entrypoint(self, *, checked: bool) -> str:
        """The job's command line; `checked`: the doctor looks first, and red ends the job."""
        command = shlex.join(["starec", *self.arguments])
        if not checked or self.arguments[0] == "doctor":
            return command
        folders = [word for folder in self.storage for word in ("--storage", folder)]
        look = shlex.join(["starec", "doctor", *self.examined, *folders, "--may-grow"])
        return f"{look} && {command}"


def make_job(name: str, arguments: Sequence[str], parameters: Mapping[str, Any]) -> Job:
    """A command that can run on a cluster.

    Args:
        name: the command.
        arguments: its arguments as given here.
        parameters: what the command line makes of them.

    Raises:
        ConfigError: if the recipe can't be run, or a path isn't one that all nodes could share.
    """
    files: dict[str, Path] = {}
    examined: list[str] = []
    for parameter in TRAVELLING:
        path = parameters.get(parameter)
        if path is None:
            continue
        if not Path(path).is_file():
            raise ConfigError(f"there is no {parameter} {path} on this machine.")
        place = f"{parameter}/{Path(path).name}"
        files[place] = Path(path)
    storage: list[str] = []
    for parameter, value in parameters.items():
        if parameter in TRAVELLING:
            continue
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path):
                _check_shared("--" + parameter.replace("_", "-"), str(path))
                storage += [str(path)] * (parameter in WRITTEN)
    for parameter in ("model", "teacher"):
        _check_shared_model(f"--{parameter}", parameters.get(parameter) or "")
    # An evaluation takes a recipe's prompts alone; its data may be another's.
    if parameters.get("recipe") and name != "evaluate":
        overrides = list(parameters.get("overrides") or [])
        if traces := parameters.get("traces"):
            for path in trace_files(traces):
                if path != BUNDLED_TRACES:
                    _check_shared("--traces", str(path))
            overrides.append(f"anchor.traces={json.dumps(traces)}")
        _check_recipe(load_recipe(parameters["recipe"], overrides))
        examined = [next(iter(files)), *overrides]
    else:
        asked = {"--data": parameters.get("data"), "--model": _model_of(parameters)}
        examined = [word for option in asked.items() if option[1] for word in map(str, option)]
    return Job([name, *(_moved(word, files) for word in arguments)], files, storage, examined)


def connect(address: str | None) -> JobSubmissionClient:
    """The cluster's job server: of `address`, else where Ray looks for one: RAY_API_SERVER_ADDRESS,
    RAY_ADDRESS, this machine.

    Raises:
        ConfigError: if none answers, or one that asks for another token.
    """
    if address and "://" not in address:
        raise ConfigError(
            f"--address is {address!r}: give the head's dashboard as http://HOST:8265."
        )
    if address:
        # Ray lets its variables override an address that is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    server, cluster = os.environ.get("RAY_API_SERVER_ADDRESS"), cluster_named()
    where = address or server or cluster or "this machine"
    try:
        if cluster == where and "://" not in cluster:
            check_answers(cluster)
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ConfigError(
            f"the cluster at {where} doesn't let this machine in: "
            f"{error.message.strip().splitlines()[0]} {TOKEN_REMEDY}"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, RpcError) as error:
        raise ConfigError(
            f"no cluster answers at {where}: {str(error).strip().splitlines()[-1]} Its dashboard "
            "listens on port 8265 of the head; from elsewhere: `ray dashboard cluster.yaml` or "
            "`kubectl port-forward service/…-head-svc 8265`, then --address http://127.0.0.1:8265."
        ) from None


def start(client: JobSubmissionClient, job: Job, env: Mapping[str, str], *, checked: bool) -> str:
    """Sends the job and its files; returns its id.

    Raises:
        STARecError: if the cluster takes no job in time.
    """
    submission_id = (
        f"starec-{job.arguments[0]}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    )
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    with tempfile.TemporaryDirectory() as folder:
        for place, path in job.files.items():
            (Path(folder) / place).parent.mkdir(exist_ok=True)
            shutil.copy(path, Path(folder) / place)
        while True:
            try:
                return client.submit_job(
                    entrypoint=job.entrypoint(checked=checked),
                    submission_id=submission_id,
                    runtime_env={"working_dir": folder, "env_vars": dict(env)},
                )
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise STARecError(f"the cluster didn't take the job: {error}") from error
                time.sleep(1.0)


class JobServer(Protocol):
    """What following needs of `JobSubmissionClient`."""

    def get_job_status(self, job_id: str) -> JobStatus: ...

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...


async def follow(client: JobServer, job_id: str, console: Console) -> JobStatus:
    """Shows the job's log until it ends; a connection that is lost is made again.

    Raises:
        STARecError: if it stays lost.
    """
    shown = 0  # characters: after a lost connection the log comes from its beginning
    lost_since: float | None = None
    while True:
        try:
            behind = shown
            async for text in client.tail_job_logs(job_id):
                fresh = text[behind:]
                behind = max(0, behind - len(text))
                shown += len(fresh)
                console.out(fresh, end="", highlight=False)
                lost_since = None
            status = client.get_job_status(job_id)
            if status.is_terminal():
                return status
            lost_since = None
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > RECONNECT_TIMEOUT_S:
                raise STARecError(
                    f"the connection to the cluster is lost ({error}); the job may go on."
                ) from error
        await asyncio.sleep(RECONNECT_EVERY_S)


def _model_of(parameters: Mapping[str, Any]) -> str | None:
    """What an evaluation or a teacher on the cluster loads; None of a command without one."""
    teacher = parameters.get("teacher")
    if parameters.get("base_url") or teacher == TEMPLATE:
        return None
    return parameters.get("model") or teacher


def _moved(word: str, files: Mapping[str, Path]) -> str:
    """An argument, with the path of this machine replaced by the one in the job's folder."""
    option, equals, value = word.partition("=")
    for place, path in files.items():
        if Path(word) == path:
            return place
        if equals and option[:2] == "--" and Path(value) == path:
            return f"{option}={place}"
    return word


def _check_recipe(recipe: Recipe) -> None:
    config = recipe.config
    _check_shared("data.path", config.data_path)
    for path in trace_files(config.traces):
        if path != BUNDLED_TRACES:
            _check_shared("anchor.traces", str(path))
    _check_shared_model("model.name", config.model_name)


def _check_shared(name: str, path: str) -> None:
    if not Path(path).is_absolute():
        raise ConfigError(
            f"{name} is {path!r}: the job runs on the cluster, in a folder that is removed. Give "
            f"a path on storage that every node sees: {name}"
            f"{' ' if name.startswith('--') else '='}/mnt/shared/…"
        )


def _check_shared_model(name: str, model: str) -> None:
    """A folder must be one that the nodes could see; a name of a hub may be anything else."""
    if model and (model.startswith((".", "~")) or Path(model).is_dir()):
        _check_shared(name, model)

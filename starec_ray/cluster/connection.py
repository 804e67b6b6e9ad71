"""Joining a Ray cluster, or starting a local one."""

import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._common.network_utils import parse_address
from ray._private import services
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import AuthenticationError
from rich.console import Console

from starec_ray.cluster.placement import fits, in_words, lacking, shortage, total
from starec_ray.errors import ConfigError

REMEDY = (
    "fewer or smaller env_runners and learners, run.ray.num_cpus (on one machine more logical "
    "CPUs than cores will do: its actors take turns), or a larger cluster (RAY_ADDRESS)."
)
TOKEN_REMEDY = (
    "RAY_AUTH_MODE must be what its nodes were started with: token, with the same token in "
    "RAY_AUTH_TOKEN or in the file that RAY_AUTH_TOKEN_PATH names, or disabled."
)
TRIES = 5  # at a cluster where nothing listens: its head may be starting
TRY_TIMEOUT_S = 5.0
BETWEEN_TRIES_S = 3.0


def cluster_named() -> str | None:
    """What RAY_ADDRESS names; None without it, and for "local", which is a Ray of one's own."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def start_ray(settings: dict[str, Any]) -> None:
    """Joins the running cluster that RAY_ADDRESS names, else starts a local one.

    Raises:
        ConfigError: if RAY_ADDRESS names none that can be joined, if that cluster isn't there, or
            asks for another token; if this user can't keep a token for a local one.
    """
    # It would advise to reuse actors wherever engines take more than ten seconds to start.
    logging.getLogger("ray.tune.trainable.trainable").setLevel(logging.WARNING)
    if ray.is_initialized():
        return
    here = str(Path(__file__).resolve().parents[2])
    path = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    address = cluster_named()
    if address:
        more = {name: variables[name] for name in variables.keys() - _of_the_job()}
        cluster: dict[str, Any] = {"runtime_env": {"env_vars": more}}
    else:
        # Ray's processes inherit them. With a runtime environment no actor could start in one of
        # the processes that wait for actors.
        os.environ.update(variables)
        # "local": else Ray joins whatever was started last on this machine.
        cluster = {"address": "local", "include_dashboard": False, **settings}
    try:
        if address:
            check_answers(address)
        ray.init(log_to_driver=bool(os.environ.get("STAREC_ACTOR_LOGS")), **cluster)
    except (AuthenticationError, ConnectionError) as error:  # to Ray a wrong token is either
        if not address:
            raise
        raise ConfigError(
            f"the cluster at RAY_ADDRESS={address} can't be joined: "
            f"{str(error).strip().splitlines()[0].rstrip('.')}. If it is there, it asks for "
            f"another token: {TOKEN_REMEDY}"
        ) from None
    except OSError as error:
        token = Path.home() / ".ray" / "auth_token"
        if not error.filename or Path(error.filename) not in (token, *token.parents):
            raise
        raise ConfigError(
            f"Ray can't keep its token at {token} ({error.strerror}): set HOME to a folder that "
            "can be written to, or RAY_AUTH_TOKEN_PATH to a file with a token, or "
            "RAY_AUTH_MODE=disabled on a machine that no one else can reach."
        ) from None


def check_answers(address: str) -> None:
    """Finds out in seconds whether something listens at a cluster's address; Ray takes a quarter
    of an hour.

    Args:
        address: a value of RAY_ADDRESS.

    Raises:
        ConfigError: nothing does; or that is no address of a cluster.
        ConnectionError: "auto" finds no cluster on this machine.
    """
    if address != "auto" and not _is_host_and_port(address):
        raise ConfigError(
            f"RAY_ADDRESS is {address!r}: it must be the head's HOST:6379, or auto. Where only "
            "its dashboard can be reached, set RAY_API_SERVER_ADDRESS=http://HOST:8265 instead, "
            "and send the command as a job: starec submit …"
        )
    where = services.canonicalize_bootstrap_address(address)  # as Ray would
    host, port = parse_address(where)
    for left in reversed(range(TRIES)):
        try:
            socket.create_connection((host, int(port)), TRY_TIMEOUT_S).close()
            return
        except (OSError, UnicodeError) as error:  # the latter of a name that is none
            if not left:
                raise ConfigError(
                    f"nothing answers at {where} (RAY_ADDRESS={address}): "
                    f"{getattr(error, 'strerror', None) or error}. Is the head up, and is this "
                    "its port (6379, unless `ray start` was told another)? Without RAY_ADDRESS, a "
                    "local Ray is started."
                ) from None
            time.sleep(BETWEEN_TRIES_S)


def _is_host_and_port(text: str) -> bool:
    host, port = parse_address(text) or ("", "")
    return bool(host) and port.isdecimal() and 0 < int(port) < 2**16


def check_resources(bundles: Sequence[Mapping[str, float]], remedy: str = REMEDY) -> None:
    """Says at once what the cluster lacks: Ray would wait for it without an end.

    A cluster that was joined (RAY_ADDRESS) may grow, and others may give back what they hold:
    there it is a warning.

    Args:
        bundles: what each actor takes, under Ray's names ("CPU", "GPU").
        remedy: what the user can do about it.

    Raises:
        ConfigError: if a Ray of one's own has less.
    """
    wanted, there, free = total(bundles), ray.cluster_resources(), ray.available_resources()
    short = [
        f"{wanted[name]:g} {name}s are wanted and the cluster has {there.get(name, 0):g}"
        for name in lacking(wanted, there)
    ] or _too_large(bundles)
    message = f"{'; '.join(short)}: {remedy}"
    console = Console(stderr=True)
    if not cluster_named():
        if short:
            raise ConfigError(message)
    elif short:
        console.print(f"[yellow]waiting for the cluster to grow:[/] {message}")
    elif lacking(wanted, free):
        console.print(f"[yellow]waiting for what others hold:[/] {shortage(bundles)}")


def _of_the_job() -> Mapping[str, str]:
    """The variables that a Ray job brings to its actors; Ray takes none of them twice."""
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return (job.get("runtime_env") or {}).get("env_vars") or {}


def _too_large(bundles: Sequence[Mapping[str, float]]) -> list[str]:
    """Of an actor that no node holds, for it lives on one: what it takes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for bundle in bundles:
        if not any(fits(bundle, node) for node in nodes):
            return [f"an actor takes {in_words(bundle)} on one node, and no node has so many"]
    return []

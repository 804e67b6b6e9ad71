"""Joining a Ray cluster, or starting a local one."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import AuthenticationError
from rich.console import Console

from starec_ray.cluster.placement import shortage, total
from starec_ray.errors import ConfigError

TOKEN_REMEDY = (
    "RAY_AUTH_MODE must be what its nodes were started with: token, with the same token in "
    "RAY_AUTH_TOKEN or in the file that RAY_AUTH_TOKEN_PATH names, or disabled."
)


def start_ray(settings: dict[str, Any]) -> None:
    """Joins the running cluster that RAY_ADDRESS names, else starts a local one.

    Raises:
        ConfigError: if that cluster isn't there, or asks for another token.
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
    address = os.environ.get("RAY_ADDRESS")
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
        ray.init(log_to_driver=bool(os.environ.get("STAREC_ACTOR_LOGS")), **cluster)
    except (AuthenticationError, ConnectionError) as error:  # to Ray a wrong token is either
        if not address:
            raise
        raise ConfigError(
            f"the cluster at RAY_ADDRESS={address} can't be joined: "
            f"{str(error).strip().splitlines()[0].rstrip('.')}. If it is there, it asks for "
            f"another token: {TOKEN_REMEDY}"
        ) from None


def check_resources(bundles: Sequence[Mapping[str, float]], remedy: str) -> None:
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
        f"{amount:g} {name}s are wanted and the cluster has {there.get(name, 0):g}"
        for name, amount in wanted.items()
        if amount > there.get(name, 0)
    ] or _too_large(bundles)
    message = f"{'; '.join(short)}: {remedy}"
    console = Console(stderr=True)
    if not os.environ.get("RAY_ADDRESS"):
        if short:
            raise ConfigError(message)
    elif short:
        console.print(f"[yellow]waiting for the cluster to grow:[/] {message}")
    elif any(amount > free.get(name, 0) for name, amount in wanted.items()):
        console.print(f"[yellow]waiting for what others hold:[/] {shortage(bundles)}")


def _of_the_job() -> Mapping[str, str]:
    """The variables that a Ray job brings to its actors; Ray takes none of them twice."""
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return (job.get("runtime_env") or {}).get("env_vars") or {}


def _too_large(bundles: Sequence[Mapping[str, float]]) -> list[str]:
    """Of an actor that no node holds, for it lives on one: what it takes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for bundle in bundles:
        if not any(all(n.get(k, 0) >= v for k, v in bundle.items()) for n in nodes):
            sizes = ", ".join(f"{amount:g} {name}s" for name, amount in bundle.items() if amount)
            return [f"an actor takes {sizes} on one node, and no node has so many"]
    return []

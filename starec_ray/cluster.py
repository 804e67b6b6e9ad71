"""Joining a Ray cluster, or starting a local one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from starec_ray.errors import ConfigError


def start_ray(settings: dict[str, Any]) -> None:
    """Joins the running cluster that RAY_ADDRESS names, else starts a local one."""
    if ray.is_initialized():
        return
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    # "local": else Ray joins whatever was started last on this machine.
    own = {"address": "local", "include_dashboard": False, **settings}
    local = {} if os.environ.get("RAY_ADDRESS") else own
    ray.init(
        log_to_driver=bool(os.environ.get("STAREC_ACTOR_LOGS")),
        runtime_env={"env_vars": {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}},
        **local,
    )


def check_resources(wanted: Mapping[str, float], remedy: str) -> None:
    """Says at once what the cluster lacks: Ray would wait for it without an end.

    A cluster that was joined (RAY_ADDRESS) may grow: there it is a warning.

    Args:
        wanted: resource, as Ray names it ("CPU", "GPU"), → how much all actors take together.
        remedy: what the user can do about it.

    Raises:
        ConfigError: if a Ray of one's own has less.
    """
    there = ray.cluster_resources()
    short = [
        f"{amount:g} {name}s are wanted and the cluster has {there.get(name, 0):g}"
        for name, amount in wanted.items()
        if amount > there.get(name, 0)
    ]
    if not short:
        return
    message = f"{'; '.join(short)}: {remedy}"
    if not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(message)
    Console(stderr=True).print(f"[yellow]waiting for the cluster to grow:[/] {message}")

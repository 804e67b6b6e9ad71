"""Joining a Ray cluster, or starting a local one."""

import os
from pathlib import Path
from typing import Any

import ray


def start_ray(settings: dict[str, Any]) -> None:
    """Joins the running cluster that RAY_ADDRESS names, else starts a local one."""
    if ray.is_initialized():
        return
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    local = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, **settings}
    ray.init(
        log_to_driver=bool(os.environ.get("STAREC_ACTOR_LOGS")),
        runtime_env={"env_vars": {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}},
        **local,
    )

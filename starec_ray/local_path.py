"""Paths of this machine, told from addresses of a store."""

import re
from pathlib import Path

from starec_ray.errors import ConfigError


def local_path(path: str | Path) -> Path:
    """The path.

    Raises:
        ConfigError: it is an address like s3://bucket/folder, which would be made here as a folder
            of that name.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # `Path` makes one slash of two
        raise ConfigError(
            f"{path} is no folder of this machine: mount the store (mountpoint-s3, gcsfuse) and "
            "give the folder that it is mounted at. Copies of a run's checkpoints go to such an "
            "address by run.checkpoint_storage."
        )
    return Path(path)

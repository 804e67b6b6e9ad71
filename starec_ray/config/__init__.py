"""Every setting: RLlib's sections and this system's own, their checks, and recipes."""

from starec_ray.config.starec_config import STARecConfig

__all__ = ["STARecConfig"]

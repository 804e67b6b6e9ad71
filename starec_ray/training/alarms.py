"""When a run has collapsed: limits on what an update measured."""

from collections.abc import Mapping
from typing import Any

from starec_ray.errors import CollapseError


class Alarms:
    """Watches the updates of a run; `skipped_in_a_row` are the last ones that were skipped.

    Args:
        config: reads max_skipped_steps, max_kl, max_grad_norm and min_entropy of a
            `STARecConfig`; of the last three 0 is no limit.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self.skipped_in_a_row = 0

    def check(self, update: Mapping[str, Any]) -> None:
        """
        Args:
            update: what the learners say of it.

        Raises:
            CollapseError: names the metric, its value and its limit.
        """
        config = self._config
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if update["skipped"] else 0
        if self.skipped_in_a_row >= config.max_skipped_steps:
            raise CollapseError(
                f"the gradient wasn't finite {self.skipped_in_a_row} times in a row "
                f"(max_skipped_steps {config.max_skipped_steps})"
            )
        if update["skipped"]:
            return  # what was measured of it isn't finite either, and it changed nothing
        for metric, limit in {"kl": config.max_kl, "grad_norm": config.max_grad_norm}.items():
            if limit and update.get(metric, 0.0) > limit:
                raise CollapseError(f"{metric} is {update[metric]:.4g}, above its limit {limit:g}")
        sampled = "ratio_mean" in update  # the anchor's tokens are a teacher's
        if config.min_entropy and sampled and update["entropy"] < config.min_entropy:
            raise CollapseError(
                f"entropy is {update['entropy']:.4g} nats, below its limit {config.min_entropy:g}"
            )

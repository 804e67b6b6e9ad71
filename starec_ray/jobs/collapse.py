"""What to do with a run whose alarms went off."""

import shlex
from collections.abc import Mapping
from typing import Any

from starec_ray.algorithm import STARec
from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.checkpoints.files import progress_of
from starec_ray.run_dir import RunDir


def way_back(algo: STARec, run: RunDir, checkpoints: Checkpoints) -> str:
    """What to do after a collapse."""
    if not (sound := checkpoints.sound()):
        return "There is no checkpoint yet: start another run with other settings."
    if not (healthy := [c for c in sound if _is_from_before(algo, progress_of(c))]):
        return (
            "No checkpoint is from before the weights that this was measured of: raise the limit "
            f"and --resume, or start another run with other settings ({run.config})."
        )
    if algo.stage == "anchor":
        key, value, more = "anchor.anchor_lr", algo.config.anchor_lr / 2, ""
    else:
        key, more = "training.lr", ", or a larger training.kl_coeff" * (algo.config.kl_coeff > 0)
        lr = algo.config.lr
        value = lr / 2 if isinstance(lr, int | float) else [[step, rate / 2] for step, rate in lr]
    command = shlex.join(
        [
            *("starec", "train", str(run.config), f"{key}={value}"),
            *("--run-dir", str(run.path), "--resume", "--from", healthy[-1].name),
        ]
    )
    return (
        f"The last healthy checkpoint is {healthy[-1]}. Go on from it with a smaller {key}{more}, "
        f"or raise the limit; --from takes any checkpoint. {command}"
    )


def _is_from_before(algo: STARec, progress: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is older than the weights that set off an alarm. In stage two they are
    those before the update: a checkpoint of the very same ones would set it off again."""
    if algo.stage == "anchor":
        return True
    measured_after = algo.training_iteration - max(0, algo.alarms.skipped_in_a_row - 1)
    anchored = progress["anchored"] or not algo.config.anchor_epochs
    return anchored and progress["training_iteration"] < measured_after

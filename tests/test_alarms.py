"""A run that has collapsed is ended; a healthy one isn't."""

import pytest

from starec_ray.alarms import Alarms
from starec_ray.config import STARecConfig
from starec_ray.errors import CollapseError

HEALTHY = {"kl": 0.2, "grad_norm": 3.0, "entropy": 1.0, "skipped_steps": 0.0}


def alarms(**limits: float) -> Alarms:
    return Alarms(STARecConfig().fault_tolerance(**limits))


@pytest.mark.parametrize(
    ("limits", "report", "told"),
    [
        ({"max_kl": 1.0}, {"kl": 1.5}, "kl is 1.5, above its limit 1"),
        ({"max_grad_norm": 10.0}, {"grad_norm": 20.0}, "grad_norm is 20, above its limit 10"),
        ({"min_entropy": 0.1}, {"entropy": 0.05}, "entropy is 0.05 nats, below its limit 0.1"),
    ],
)
def test_what_crosses_its_limit_ends_the_run(limits, report, told):
    watching = alarms(**limits)
    watching.check(HEALTHY)
    with pytest.raises(CollapseError, match=told):
        watching.check(HEALTHY | report)
    alarms().check(HEALTHY | report)  # without a limit nothing does
    watching.check({"stage": "anchor", "loss": 2.0})  # the anchor has no such metrics


def test_updates_left_out_end_the_run_when_they_follow_each_other():
    watching = alarms(max_skipped_steps=2)
    for skipped in (1.0, 1.0, 2.0, 2.0, 3.0):
        watching.check(HEALTHY | {"skipped_steps": skipped})
    with pytest.raises(CollapseError, match="wasn't finite 2 times in a row"):
        watching.check(HEALTHY | {"skipped_steps": 4.0})

"""A run that has collapsed is ended; a healthy one isn't."""

import math
from types import SimpleNamespace

import pyarrow as pa
import pytest

from starec_ray.algorithm import STARec
from starec_ray.config import STARecConfig
from starec_ray.errors import CollapseError
from starec_ray.training.alarms import Alarms

HEALTHY = {"kl": 0.2, "grad_norm": 3.0, "entropy": 1.0, "skipped": 0.0}


def alarms(**limits: float) -> Alarms:
    return Alarms(STARecConfig().fault_tolerance(**limits))


@pytest.mark.parametrize(
    ("limits", "report", "told"),
    [
        ({"max_kl": 1.0}, {"kl": 1.5}, "kl is 1.5, above its limit 1"),
        ({"max_grad_norm": 10.0}, {"grad_norm": 20.0}, "grad_norm is 20, above its limit 10"),
        (
            {"min_entropy": 0.1},
            {"entropy": 0.05, "ratio_mean": 1.0},
            "entropy is 0.05 nats, below its limit 0.1",
        ),
    ],
)
def test_what_crosses_its_limit_ends_the_run(limits, report, told):
    watching = alarms(**limits)
    watching.check(HEALTHY)
    with pytest.raises(CollapseError, match=told):
        watching.check(HEALTHY | report)
    alarms().check(HEALTHY | report)  # without a limit nothing does


def test_tokens_that_a_teacher_wrote_may_become_sure():
    alarms(min_entropy=0.1).check({"loss": 0.1, "skipped": 0.0, "entropy": 0.05})


def test_updates_left_out_end_the_run_when_they_follow_each_other():
    watching = alarms(max_skipped_steps=2)
    for skipped in (1.0, 0.0, 1.0, 0.0, 1.0):
        watching.check(HEALTHY | {"skipped": skipped})
    with pytest.raises(CollapseError, match="wasn't finite 2 times in a row"):
        watching.check(HEALTHY | {"skipped": 1.0})


def test_of_an_update_left_out_nothing_is_compared_with_a_limit():
    watching = alarms(max_grad_norm=10.0, max_kl=1.0, max_skipped_steps=2)
    watching.check(HEALTHY | {"skipped": 1.0, "grad_norm": math.inf, "kl": math.inf})
    watching.check(HEALTHY)
    with pytest.raises(CollapseError, match="grad_norm is 20"):
        watching.check(HEALTHY | {"grad_norm": 20.0})


def test_the_batch_that_set_off_the_alarm_is_told_apart_from_others_of_its_iteration():
    algo = STARec.__new__(STARec)
    algo.config = STARecConfig().anchor(anchor_updates_per_iteration=6)
    algo.config.fault_tolerance(max_skipped_steps=2)
    algo.alarms, algo.report, algo.anchor_updates_done = Alarms(algo.config), {}, 0
    batches = [pa.table({"number": [number]}) for number in range(6)]
    algo.__dict__["anchor_data"] = SimpleNamespace(updates_per_epoch=6, batch=batches.__getitem__)

    def learn(method: str, batch: pa.Table, objective: str) -> list[dict[str, float]]:
        skipped = float(batch["number"][0].as_py() in (1, 3, 4))
        return [{"loss": 1.0, "tokens_per_second": 9.0, "seconds": 1.0, "skipped": skipped}]

    algo.learners = learn
    with pytest.raises(CollapseError, match="2 times in a row"):
        algo._anchor()
    assert algo.latest_update is batches[4]
    assert algo.report["loss"] == 1.0

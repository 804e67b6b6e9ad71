"""A deadline for work that has none: as long as it gets further, it may take any time."""

import time

from starec_ray.heartbeat import Heartbeat, HeartbeatDeadline


def test_work_that_gets_further_may_take_longer_than_the_deadline():
    def work(heartbeat: Heartbeat) -> str:
        for _ in range(5):
            time.sleep(0.1)
            heartbeat()
        return "done"

    assert HeartbeatDeadline(0.3, "")("copying", work) == "done"

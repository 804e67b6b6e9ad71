"""Actors that don't start: the wait has an end, says why, and leaves none of them behind."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.util.placement_group import remove_placement_group

from starec_ray.cluster import actor_logs, placement, start_deadline
from starec_ray.cluster.failures import Failures
from starec_ray.cluster.start_deadline import StartDeadline
from starec_ray.config import STARecConfig
from starec_ray.errors import DeadlineError
from starec_ray.evaluation.session import evaluation_session
from starec_ray.training.learner_calls import LearnerCalls, LearnersLostError
from tests.tiny_recipe import tiny_recipe
from tests.waiting import wait_until

pytestmark = pytest.mark.engine

SLEEP_S = 300.0


class Sleeper:
    """An actor that doesn't come up."""

    def __init__(self, begun: Path | None = None) -> None:
        print("waiting for a licence server", flush=True)
        if begun:
            begun.touch()
        time.sleep(SLEEP_S)

    def ping(self) -> None: ...


def left(class_name: str) -> list[dict]:
    found = ray._private.state.actors().values()
    return [a for a in found if a["ActorClassName"] == class_name and a["State"] != "DEAD"]


def test_an_actor_that_hangs_is_ended_and_its_log_shown(ray_cluster, monkeypatch, tmp_path):
    monkeypatch.setattr(
        actor_logs, "TIMEOUT_S", 60.0
    )  # another process reads it, on a busy machine
    sleeper = ray.remote(num_cpus=1)(Sleeper)
    deadline = StartDeadline("sleeper", "Sleeper", SLEEP_S, {"CPU": 1})
    with (
        pytest.raises(DeadlineError, match=r"(?s)1 of 1 sleepers did not.*licence server"),
        deadline,
    ):
        actor = sleeper.remote(tmp_path / "begun")
        while not (tmp_path / "begun").exists():
            time.sleep(0.1)
        deadline._end_late()  # the time has come
        ray.get(actor.ping.remote())
    wait_until(lambda: not left("Sleeper"), 30.0, "a sleeper is left")


def test_a_deadline_that_comes_as_its_block_is_left_touches_nothing(
    ray_cluster, monkeypatch, capfd
):
    deadline = StartDeadline("sleeper", "Sleeper", SLEEP_S, {"GPU": 1}, until_left=True)
    ended: list[object] = []
    monkeypatch.setattr(deadline, "_end", ended.append)
    with deadline:
        actor = ray.remote(num_gpus=1)(Sleeper).remote()
        wait_until(lambda: bool(left("Sleeper")), 30.0, "Ray doesn't know of it")
    deadline._tell_waiting()  # their timers had fired, and waited for the lock
    deadline._end_late()
    assert not ended and "waiting for a place" not in capfd.readouterr().err
    ray.kill(actor)


def test_actors_that_are_asked_for_after_the_deadline_are_late_at_once(ray_cluster):
    sleeper = ray.remote(num_cpus=1)(Sleeper)
    with (
        pytest.raises(DeadlineError, match="1 of 1 sleepers did not start"),
        StartDeadline("sleeper", "Sleeper", 0.5, {"CPU": 1}),
    ):
        time.sleep(1.0)
        ray.get(sleeper.remote().ping.remote())


def test_an_actor_without_a_place_is_told_with_what_is_missing(ray_cluster):
    sleeper = ray.remote(num_gpus=2)(Sleeper)
    with (
        pytest.raises(
            DeadlineError, match=r"PENDING.*wanted: GPU 2; there: GPU 0 \(0 free\); missing: GPU 2"
        ),
        StartDeadline("sleeper", "Sleeper", 2.0, {"GPU": 2}),
    ):
        actor = sleeper.remote()
        ray.get(actor.ping.remote())


def test_a_wait_for_a_place_is_told_of_long_before_it_ends(ray_cluster, monkeypatch, capfd):
    monkeypatch.setattr(start_deadline, "TOLD_AFTER_S", 2.0)
    sleeper = ray.remote(num_gpus=1)(Sleeper)
    with (
        pytest.raises(DeadlineError),
        StartDeadline("sleeper", "Sleeper", 4.0, {"GPU": 1}),
    ):
        waiting = [sleeper.remote() for _ in range(2)]
        ray.get([actor.ping.remote() for actor in waiting])
    told = capfd.readouterr().err
    assert told.count("waiting for a place for 2 sleepers: wanted: GPU 2; there: GPU 0") == 1


def test_learners_whose_place_is_taken_are_told_of_and_get_it_when_it_is_free(
    ray_cluster, monkeypatch, capfd
):
    monkeypatch.setattr(placement, "TOLD_AFTER_S", 1.0)
    config = STARecConfig().learners(num_learners=2)
    others = ray.util.placement_group([{"CPU": 9}])
    assert others.wait(60)

    def free_the_place_once_told(*of_whom: object) -> None:
        placement_tells(*of_whom)
        remove_placement_group(others)

    placement_tells = placement.tell_waiting
    monkeypatch.setattr(placement, "tell_waiting", free_the_place_once_told)
    place = placement.learners_together(config)
    assert place
    remove_placement_group(place)
    told = capfd.readouterr().err
    assert (
        told.count("place for 2 learners: wanted: CPU 2; there: CPU 10 (1 free); missing: CPU") == 1
    )


def test_learners_without_a_place_are_told_with_what_is_missing(ray_cluster):
    config = STARecConfig().learners(num_learners=2, num_gpus_per_learner=1)
    config.fault_tolerance(start_timeout_s=2.0)
    with pytest.raises(DeadlineError, match=r"wanted: CPU 2, GPU 2; .* missing: GPU 2"):
        config.build_learner_group(rl_module_spec=config.get_default_rl_module_spec())


def test_an_evaluation_whose_engines_have_no_place_ends_and_leaves_none(
    ray_cluster, small_world, tiny_model
):
    config = tiny_recipe(small_world, tiny_model, None).config.resolve()
    config.env_runners(num_gpus_per_env_runner=1).fault_tolerance(start_timeout_s=4.0)
    with (
        pytest.raises(DeadlineError, match=r"2 of 2 env runners .*missing: GPU 2"),
        evaluation_session(config),
    ):
        pass
    kind = config.env_runner_cls.__name__
    wait_until(lambda: not left(kind), 30.0, "an env runner is left")


def test_learners_that_can_not_start_again_are_told_with_the_reason(ray_cluster):
    config = STARecConfig().learners(num_learners=1, num_gpus_per_learner=1)
    config.fault_tolerance(start_timeout_s=2.0)
    gone = SimpleNamespace(
        config=config,
        _workers=[],
        _backend_executor=SimpleNamespace(_placement_group=None),
        _module_spec=config.get_default_rl_module_spec(),
        shutdown=lambda: None,
    )
    calls = LearnerCalls(gone, 60.0, Failures(most=9, window_s=60.0))
    with pytest.raises(LearnersLostError, match=r"could not start again.*missing: GPU 1"):
        calls.rebuild()

"""Env runners that fail: told soon, with the cause."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.util.placement_group import placement_group_table

from actors.weight_transfer.object_store import (
    ObjectStorePublication,
    ObjectStorePublisher,
    ObjectStoreTicket,
)
from starec_ray.cluster import actor_logs
from starec_ray.cluster.failures import FailureEvent, Failures
from starec_ray.config import STARecConfig
from starec_ray.errors import DeadlineError, STARecError, WeightsLostError
from starec_ray.evaluation.session import evaluation_session
from starec_ray.rollouts.sampling import RunnerPool
from tests.waiting import wait_until

pytestmark = pytest.mark.engine


def all_places_given_back() -> bool:
    """Ray removes them some time after it was told to."""
    return {place["state"] for place in placement_group_table().values()} == {"REMOVED"}


def test_a_runner_that_can_not_start_ends_the_wait_with_its_cause(
    small_world, tiny_model, ray_cluster
):
    config = (
        STARecConfig()
        .data(path=small_world)
        .model(name=str(tiny_model), dtype="float32")
        # A third of its heads isn't a whole number, which vLLM alone finds out.
        .env_runners(num_env_runners=1, num_cpus_per_env_runner=1, tensor_parallel_size=3)
        .resolve()
    )
    before = set(ray._private.state.actors())
    with pytest.raises(STARecError, match=r"(?s)an env runner could not start.*tensor parallel"):
        config.build_algo()
    [learner] = [
        actor
        for actor_id, actor in ray._private.state.actors().items()
        if actor_id not in before and actor["ActorClassName"].endswith("_WrappedExecutable")
    ]  # it started meanwhile
    assert learner["State"] == "DEAD"
    wait_until(all_places_given_back, 30.0, "a placement group is left")
    start = time.monotonic()
    with (
        evaluation_session(config) as session,
        pytest.raises(STARecError, match=r"(?s)no env runner could start.*tensor parallel"),
    ):
        session.models.load_model(str(tiny_model))
        session.models.sample([], rollouts=1, temperature=0.0, seed=0)
    assert time.monotonic() - start < config.start_timeout_s / 5


class Publishing:
    """A learner that puts weights into the object store."""

    def publish(self) -> ObjectStoreTicket:
        weights = iter([("weight", torch.ones(2**18))])  # too large to travel with the ticket
        return ObjectStorePublisher(timeout_s=30.0).publish(weights, version=3)


class Reading:
    """A runner whose engine adds its weights up."""

    def start_weight_update(self) -> None:
        self.total, self.updating = 0.0, True

    def update_weights(self, request: dict) -> None:
        for _, weight in request["update_info"]["named_tensors"]:
            self.total += float(weight.sum())

    def finish_weight_update(self) -> None:
        self.updating = False

    def load_weights(self, ticket: ObjectStoreTicket) -> dict[str, float]:
        ticket.load(self)
        return {"total": self.total}

    def is_whole(self) -> bool:
        return not self.updating


def test_weights_that_died_with_their_learner_are_no_fault_of_the_runners(ray_cluster):
    learner = ray.remote(num_cpus=0)(Publishing).remote()
    runner = ray.remote(num_cpus=0)(Reading).remote()
    publication = ObjectStorePublication(ray.get(learner.publish.remote()))
    events: list[FailureEvent] = []
    failures = Failures(9, 60.0)
    failures.tell = events.append
    manager = FaultTolerantActorManager([runner], init_id=1)
    pool = RunnerPool(SimpleNamespace(_worker_manager=manager), 60.0, 60.0, 60.0, failures)
    assert pool.load_weights(publication) == {"total": 2**18}
    ray.kill(learner)

    def gone() -> bool:
        try:
            pool.load_weights(publication)
        except WeightsLostError as error:
            assert "the weights of version 3 are gone" in str(error)
            return True
        return False

    wait_until(gone, 60.0, "the weights outlive their learner")
    assert manager.healthy_actor_ids() == [1] and not events
    assert ray.get(runner.is_whole.remote())  # an engine amid an update takes no other
    ray.kill(runner)


class Sleeper:
    """A runner that doesn't come up."""

    def __init__(self) -> None:
        print("waiting for a licence server", flush=True)
        time.sleep(300.0)

    def ping(self) -> None: ...


def test_runners_that_do_not_come_up_are_told_of_with_their_logs(ray_cluster, monkeypatch):
    monkeypatch.setattr(
        actor_logs, "TIMEOUT_S", 60.0
    )  # another process reads it, on a busy machine
    actor = ray.remote(num_cpus=0)(Sleeper).remote()
    manager = FaultTolerantActorManager([actor], init_id=1)
    manager.set_actor_state(1, False)
    pool = RunnerPool(
        SimpleNamespace(_worker_manager=manager),
        sample_timeout_s=60.0,
        transfer_timeout_s=60.0,
        start_timeout_s=8.0,
        failures=Failures(9, 60.0),
    )
    with pytest.raises(DeadlineError, match=r"(?s)none of 1 .* within 8 s.*licence server"):
        pool.sample([], rollouts=1, temperature=0.0, seed=0)
    ray.kill(actor)


class Awake:
    """A runner whose sleep can be seen."""

    def __init__(self, start_s: float = 0.0) -> None:
        time.sleep(start_s)
        self.asleep = False

    def ping(self) -> None: ...

    def sleep(self) -> None:
        self.asleep = True

    def is_asleep(self) -> bool:
        return self.asleep


class Unlicensed(Awake):
    """A runner whose start fails."""

    def __init__(self) -> None:
        raise OSError("no licence server")


def test_one_that_is_made_anew_is_waited_for_before_the_learners_learn(ray_cluster):
    runner = ray.remote(num_cpus=0)(Awake)
    made = []

    def make(**_: object) -> Any:
        made.append(runner.remote(3.0))
        return made[-1]

    manager = FaultTolerantActorManager(
        [runner.remote(), ray.remote(num_cpus=0)(Unlicensed).remote()], init_id=1
    )
    manager.set_actor_state(2, False)
    group = SimpleNamespace(
        _worker_manager=manager, _make_worker=make, _env_creator=None, _remote_config_obj_ref=None
    )
    pool = RunnerPool(group, 60.0, 60.0, 60.0, Failures(9, 60.0))
    wait_until(lambda: "licence" in str(pool.start_fault()), 60.0, "it starts after all")
    pool.load_weights(
        SimpleNamespace(version=1, deliver=lambda runners, call: {r: {} for r in runners})
    )
    pool.sleep()
    assert ray.get([actor.is_asleep.remote() for actor in manager.actors().values()]) == [True] * 2
    assert made == [manager.actors()[2]]
    for actor in manager.actors().values():
        ray.kill(actor)


@pytest.mark.parametrize("start_s", [0.0, 3.0])
def test_runners_that_come_back_before_the_learners_learn_sleep_too(start_s, ray_cluster):
    runner = ray.remote(num_cpus=0)(Awake)
    runners = [runner.remote(), runner.remote(start_s)]
    ray.get([runner.ping.remote() for runner in runners[: 1 if start_s else 2]])
    manager = FaultTolerantActorManager(runners, init_id=1)
    manager.set_actor_state(2, False)  # it was lost, and has been started again, or soon is
    pool = RunnerPool(SimpleNamespace(_worker_manager=manager), 60.0, 60.0, 60.0, Failures(9, 60.0))
    pool.sleep()
    assert ray.get([runner.is_asleep.remote() for runner in runners]) == [True, True]
    for runner in runners:
        ray.kill(runner)

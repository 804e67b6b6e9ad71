"""The order of sampling, loading weights and training, and how stale a batch can be."""

from dataclasses import dataclass

import pytest

from actors.weight_transfer.base import Publication
from starec_ray.errors import STARecError
from starec_ray.rollouts.collect import Batch
from starec_ray.rollouts.ledger import Ledger
from starec_ray.rollouts.queue import RolloutQueue
from starec_ray.schemas import ROLLOUTS, SEQUENCES


@dataclass
class Version:
    version: int

    def deliver(self, runners, call):
        raise NotImplementedError


class Sampler:
    """Samples nothing, and remembers with which weights."""

    def __init__(self, fails_at: int = -1) -> None:
        self.version = -1
        self.collected: list[tuple[int, int]] = []  # iteration, version
        self.fails_at = fails_at

    def load_weights(self, weights: Publication) -> dict[str, float]:
        self.version = weights.version
        return {"load": 0.25}

    def collect(self, number: int) -> Batch:
        if number == self.fails_at:
            raise STARecError("no env runner could start")
        self.collected.append((number, self.version))
        tables = SEQUENCES.empty_table(), ROLLOUTS.empty_table()
        ledger = Ledger(asked=16, lost=4, asked_again=4, finished=16, followed_up=2)
        return Batch(*tables, report={}, ledger=ledger, weight_version=self.version)


def queue(sampler: Sampler, max_staleness: int) -> RolloutQueue:
    waiting = RolloutQueue(sampler.collect, sampler.load_weights, max_staleness)
    waiting.offer(Version(0))
    return waiting


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_no_batch_is_staler_than_allowed_and_each_is_sampled_once_in_order(max_staleness):
    sampler = Sampler()
    waiting = queue(sampler, max_staleness)
    staleness = []
    for updates in range(12):
        batch = waiting.take(updates)
        staleness.append(updates - batch.weight_version)
        waiting.offer(Version(updates + 1))
    waiting.settle()
    assert max(staleness) <= max_staleness
    assert sampler.version == 12
    numbers = [number for number, _ in sampler.collected]
    assert numbers == list(range(12 + max_staleness))


def test_the_next_iterations_are_sampled_while_one_trains():
    sampler = Sampler()
    waiting = queue(sampler, max_staleness=2)
    assert waiting.take(0).weight_version == 0
    waiting.settle()  # training takes its time
    assert [number for number, _ in sampler.collected] == [0, 1, 2]
    waiting.offer(Version(1))
    assert waiting.take(1).weight_version == 0
    waiting.settle()
    assert sampler.collected[-1] == (3, 1)  # two updates from now it will be two versions old


def test_on_policy_nothing_is_sampled_before_it_is_asked_for():
    sampler = Sampler()
    waiting = queue(sampler, max_staleness=0)
    waiting.take(0)
    assert waiting.offer(Version(1)) == {"load": 0.25}
    assert sampler.version == 1  # at once
    assert sampler.collected == [(0, 0)]


def test_the_seconds_of_loading_come_with_the_batch_that_waited_for_them():
    waiting = queue(Sampler(), max_staleness=1)
    assert waiting.take(0).report == {"weight_transfer/load": 0.25}
    assert waiting.take(1).report == {}


def test_what_was_sampled_ahead_is_sampled_again_after_going_back():
    sampler = Sampler()
    waiting = queue(sampler, max_staleness=2)
    waiting.take(0)
    waiting.forget()  # a checkpoint is loaded
    waiting.offer(Version(7))
    assert waiting.take(1).weight_version == 7
    assert (1, 7) in sampler.collected


def test_weights_that_were_offered_before_going_back_are_not_loaded():
    sampler = Sampler()
    waiting = queue(sampler, max_staleness=1)
    waiting.settle()
    waiting.offer(Version(1))
    waiting.forget()
    assert sampler.version == 0


def test_what_is_dropped_is_counted_and_the_ledger_adds_up():
    waiting = queue(Sampler(fails_at=3), max_staleness=3)
    ledger = waiting.take(0).ledger
    ledger.learned(14, 14)
    waiting.settle()  # 1 and 2 are sampled, 3 has failed
    ledger.add(waiting.forget())
    assert (ledger.asked, ledger.asked_again, ledger.lost) == (48, 12, 12)
    assert (ledger.finished, ledger.followed_up, ledger.dropped) == (48, 6, 28)
    assert ledger.waiting == 0
    assert waiting.forget() == Ledger()


def test_a_failure_ahead_is_told_of_when_its_turn_comes():
    waiting = queue(Sampler(fails_at=2), max_staleness=1)
    waiting.take(0)
    waiting.take(1)
    with pytest.raises(STARecError, match="no env runner could start"):
        waiting.take(2)


@pytest.mark.parametrize("max_staleness", [1, 3])
def test_nothing_is_sampled_that_no_iteration_will_use(max_staleness):
    sampler = Sampler()
    waiting = queue(sampler, max_staleness)
    waiting.end = 5
    for updates in range(5):
        assert waiting.take(updates).weight_version <= updates
        waiting.offer(Version(updates + 1))
    waiting.settle()
    assert [number for number, _ in sampler.collected] == [0, 1, 2, 3, 4]
    waiting.take(5)  # asked for after all

"""Iterations sampled ahead of the one that trains, and how old their weights may be."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from actors.weight_transfer.base import Publication
from starec_ray.rollouts.collect import Batch
from starec_ray.rollouts.ledger import Ledger


class RolloutQueue:
    """The queue of sampled iterations.

    With `max_staleness` n, while iteration k trains, those up to k + n are sampled, one after the
    other on a thread that alone has to do with the env runners. Each begins by loading the newest
    weights that were offered: iteration k + n is asked for when the weights have made k updates,
    and trained on when they have made k + n, so none is ever staler than n. With n = 0 there is no
    thread: sampling and training take turns.

    Args:
        collect: samples the iteration of a number.
        load_weights: brings a published version to the env runners; returns seconds by part.
        max_staleness: iterations that sampling may be ahead.

    Attributes:
        end: the first iteration that nobody will take, so that none is sampled in vain; None where
            that isn't known.
    """

    def __init__(
        self,
        collect: Callable[[int], Batch],
        load_weights: Callable[[Publication], dict[str, float]],
        max_staleness: int,
    ) -> None:
        self._collect = collect
        self._load_weights = load_weights
        self._max_staleness = max_staleness
        self.end: int | None = None
        self._batches: dict[int, Future[Batch]] = {}
        self._offered: Publication | None = None  # not loaded yet
        self._exchange = threading.Lock()  # of what is offered
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")

    def offer(self, weights: Publication) -> dict[str, float]:
        """Makes these the weights that sampling goes on with; the seconds of loading them, by
        part, unless that is left to the thread (then they stand in the next batch's report)."""
        if not self._max_staleness:
            return self._load_weights(weights)
        with self._exchange:
            self._offered = weights
        return {}

    def take(self, number: int) -> Batch:
        """The rollouts of iteration `number`, which trains next; those behind it are begun.

        Raises:
            STARecError: what sampling failed with.
        """
        if not self._max_staleness:
            return self._collect(number)
        behind = number + self._max_staleness + 1
        if self.end is not None:
            behind = max(number + 1, min(behind, self.end))
        for later in range(number, behind):
            if later not in self._batches:
                self._batches[later] = self._thread.submit(self._load_and_collect, later)
        return self._batches.pop(number).result()

    def settle(self) -> None:
        """Waits until nothing is being sampled, and the env runners hold the newest weights."""
        if self._max_staleness:
            self._thread.submit(self._load_offered).result()

    def forget(self) -> Ledger:
        """Drops what was sampled ahead, and waits for what is being sampled.

        Returns:
            What became of the rollouts that nobody takes now.
        """
        batches, self._batches = list(self._batches.values()), {}
        for batch in batches:
            batch.cancel()
        with self._exchange:
            self._offered = None  # they may be gone; whoever goes back publishes its own
        self.settle()
        ledger = Ledger()
        for batch in batches:
            if not batch.cancelled() and not batch.exception():
                ledger.add(batch.result().ledger)
        ledger.dropped = ledger.waiting
        return ledger

    def stop(self) -> None:
        """Begins nothing more; does not wait for what is being sampled."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _load_and_collect(self, number: int) -> Batch:
        seconds = self._load_offered()
        batch = self._collect(number)
        batch.report.update({f"weight_transfer/{part}": s for part, s in seconds.items()})
        return batch

    def _load_offered(self) -> dict[str, float]:
        with self._exchange:
            weights, self._offered = self._offered, None
        return self._load_weights(weights) if weights else {}

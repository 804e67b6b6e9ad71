"""The interface of weight transfer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class Ticket(Protocol):
    """What a runner needs to load one published version; small, and sent to every runner."""

    @property
    def version(self) -> int: ...

    @property
    def seconds(self) -> dict[str, float]:
        """What publishing took, by part."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, whole, under Hugging Face's names; not to be written to."""


class WeightTransfer(ABC):
    """Learner side: publishes versions. Picklable, for it is sent to every learner's rank."""

    @abstractmethod
    def publish(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> Ticket:
        """Called on rank 0 with all weights, one whole tensor at a time.

        A tensor is good until the next is asked for: it has to be copied or sent before.
        """

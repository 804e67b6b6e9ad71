"""The interface of weight transfer.

The driver publishes a version of the learners' weights and delivers it to env runners, at once
and again to those that come back. What a runner is sent is a small ticket that loads it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# What each env runner answered, or the Exception that it failed with.
Answers = dict[int, Any]
# Calls a method on some env runners at once, with arguments for each of them.
CallRunners = Callable[[str, Mapping[int, dict[str, Any]]], Answers]
# Calls a method on all learners: their answers, in the order of ranks.
CallLearners = Callable[..., list[Any]]


@dataclass(frozen=True)
class Layout:
    """One tensor of a model: Hugging Face's name, dtype, whole shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Ticket(Protocol):
    """What a runner needs to load one published version."""

    @property
    def version(self) -> int: ...

    def load(self, llm: Any) -> dict[str, float]:
        """Replaces the weights of a `vllm.LLM`; returns the seconds of each part.

        Raises:
            WeightsLostError: this version isn't to be had any more; the engine keeps its weights.
            Exception: any other ends the runner, whose weights may be half replaced.
        """


class Publication(Protocol):
    """One version of the weights, to be had until the next one is published."""

    @property
    def version(self) -> int: ...

    def deliver(self, runners: Sequence[int], call: CallRunners) -> Answers:
        """Brings it to these env runners; an answer holds the seconds of each part.

        A runner that is lost, hangs or fails at it is no error here: its Exception stands in the
        answers, and it is given the weights again once it is back.

        Raises:
            TransferError: they weren't sent, though no runner failed.
            WeightsLostError: what was published is gone with the learner that had it.
            DeadlineError: learners that take part were lost, or didn't finish in time.
        """


class WeightTransfer(ABC):
    """Driver side of an engine of weight transfer."""

    @abstractmethod
    def publish(self, learners: CallLearners, version: int) -> Publication:
        """Makes the learners' weights of now a version that env runners can be given.

        Raises:
            DeadlineError: a learner was lost at it, or didn't finish in time.
        """

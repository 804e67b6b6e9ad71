"""What became of every rollout that training asked for."""

from dataclasses import asdict, dataclass
from typing import Self


@dataclass(slots=True)
class Ledger:
    """Counts of rollouts since the run began; goes back with a run that goes back.

    Between two iterations asked + asked_again = finished + lost, and
    finished = trained + skipped + followed_up + dropped + waiting.

    Attributes:
        asked: wanted of the env runners, each counted once.
        lost: not given back, for their env runner failed.
        asked_again: of others, in the place of those lost.
        finished: given back.
        trained: learned from, as the learners count them beside their weights.
        skipped: in updates that were left out, for their gradient wasn't finite.
        followed_up: rankings that only reward the summary they were made with.
        dropped: sampled ahead of a run that went back, with weights that are gone.
    """

    asked: int = 0
    lost: int = 0
    asked_again: int = 0
    finished: int = 0
    trained: int = 0
    skipped: int = 0
    followed_up: int = 0
    dropped: int = 0

    @property
    def waiting(self) -> int:
        """Finished, and not yet used."""
        used = self.trained + self.skipped + self.followed_up
        return self.finished - used - self.dropped

    def learned(self, trained: int, batch: int) -> None:
        """After an update: the learners' count of now, and how many rollouts it was of."""
        if trained == self.trained:
            self.skipped += batch
        self.trained = trained

    def add(self, other: "Ledger") -> None:
        """Counts what another ledger counted as well."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)

    def report(self) -> dict[str, int]:
        """For the metrics: {"rollouts/asked": …, …}."""
        counts = asdict(self) | {"waiting": self.waiting}
        return {f"rollouts/{name}": count for name, count in counts.items()}

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, int]) -> Self:
        return cls(**state)

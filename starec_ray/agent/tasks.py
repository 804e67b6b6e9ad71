"""What an agent can be asked: to rank (fast thinking), to reflect or to summarize (slow)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankTask:
    """Rank the candidates of a case with this preference summary in the memory."""

    case_id: str
    summary: str


@dataclass(frozen=True, slots=True)
class ReflectTask:
    """Rewrite the preference summary after the real choice was revealed.

    `predicted` is the agent's own ranking (item ids, best first), `chosen` the item id that the
    user really chose: the feedback, which exists only after the ranking was scored.
    """

    case_id: str
    summary: str
    predicted: tuple[str, ...]
    chosen: str


@dataclass(frozen=True, slots=True)
class SummarizeTask:
    """Write a preference summary from the history alone."""

    case_id: str
    summary: str = ""  # nothing is known yet


Task = RankTask | ReflectTask | SummarizeTask

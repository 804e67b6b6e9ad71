"""Where groups lie in a micro-batch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupSpan:
    """Where a group lies in a micro-batch: input tokens of its prompt, then of each reply."""

    start: int
    prompt: int  # without the family's opening
    replies: tuple[int, ...]  # none of them 0

    @property
    def prompt_end(self) -> int:
        return self.start + self.prompt

    @property
    def end(self) -> int:
        return self.prompt_end + sum(self.replies)


@dataclass(frozen=True, slots=True)
class FamilySpan:
    """Where a family lies: the input tokens that its prompts begin with, then its groups."""

    start: int
    opening: int  # may be 0
    groups: tuple[GroupSpan, ...]

    @property
    def opening_end(self) -> int:
        return self.start + self.opening

"""Whole replies as tokens: fixed text, and blanks to fill from a few options.

Constrained decoding lets the model choose only where there is a choice, so that every ranking is
whole and training spends itself on what the model prefers, not on how it is written. The policy
is then the model's distribution over the choices, renormalised; sampling and learning agree on it
token for token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starec_ray.agent.formats import Blank

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """The blanks of one prompt's reply, as token ids.

    Attributes:
        options: for each blank, its options; no option begins another.
        once: for each blank, whether its option is spent for later blanks.
        end: the token that ends a reply.
    """

    options: tuple[tuple[Tokens, ...], ...]
    once: tuple[bool, ...]
    end: int

    @classmethod
    def of(cls, blanks: Sequence[Blank], tokenizer: Any) -> "ReplyForm":
        """Each option encoded by itself, so that a reply has one spelling in tokens."""
        known: dict[tuple[str, ...], tuple[Tokens, ...]] = {}
        for blank in blanks:
            if blank.options not in known:
                encoded = tokenizer(list(blank.options), add_special_tokens=False)["input_ids"]
                known[blank.options] = tuple(map(tuple, encoded))
        return cls(
            tuple(known[blank.options] for blank in blanks),
            tuple(blank.once for blank in blanks),
            tokenizer.eos_token_id,
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest reply, the end included (with `once` blanks: at most)."""
        fixed = sum(
            max(map(len, options))
            for options, once in zip(self.options, self.once, strict=True)
            if not once
        )
        pools = {options for options, once in zip(self.options, self.once, strict=True) if once}
        return fixed + sum(len(option) for pool in pools for option in pool) + 1

    def write(self, filled: Sequence[int]) -> list[int]:
        """Token ids of the reply with these options (one for each blank), the end included."""
        chosen = zip(self.options, filled, strict=True)
        return [*(token for options, option in chosen for token in options[option]), self.end]

    def choices(self, reply_ids: Sequence[int]) -> list[list[int]]:
        """For each token of a reply, cut short or not, the tokens that could stand there."""
        cursor = self.start()
        found = []
        for token in reply_ids:
            found.append(cursor.choices())
            cursor.take(token)
        return found

    def expected_options(
        self, reply_ids: Sequence[int], logprobs: Sequence[Mapping[int, float]]
    ) -> list[float]:
        """For each open blank of a reply, the mean index of its options by their probabilities.

        An open blank has several options. Empty if an option has several tokens, for then its
        probability isn't known from one step.

        Args:
            reply_ids: a reply, cut short or not.
            logprobs: for each of its tokens, the log-probs of (at least) its choices.
        """
        open_blanks = [options for options in self.options if len(options) > 1]
        if any(len(option) > 1 for options in open_blanks for option in options):
            return []
        steps = [
            step
            for step, choices in zip(logprobs, self.choices(reply_ids), strict=True)
            if len(choices) > 1
        ]
        expected = []
        for options, step in zip(open_blanks, steps, strict=False):
            weights = [math.exp(step[token]) for (token,) in options]
            mean = sum(index * weight for index, weight in enumerate(weights)) / sum(weights)
            expected.append(mean)
        return expected

    def start(self) -> "Cursor":
        """Before the first token."""
        return Cursor(self)

    def plain(self) -> dict[str, Any]:
        """As keyword arguments of plain types."""
        return {"options": self.options, "once": self.once, "end": self.end}


class Cursor:
    """A place in a reply that is being written."""

    def __init__(self, form: ReplyForm) -> None:
        self._form = form
        self._blank = 0
        self._spent: set[int] = set()
        self._open: list[int] = []  # options that begin with what was taken of this blank
        self._enter()

    def choices(self) -> list[int]:
        """The tokens that may come next, ascending; behind the last blank the end alone."""
        if self._blank == len(self._form.options):
            return [self._form.end]
        options = self._form.options[self._blank]
        return sorted({options[index][self._offset] for index in self._open})

    def take(self, token: int) -> None:
        """Moves on by a token.

        Raises:
            ValueError: if it isn't one of the choices.
        """
        if token not in self.choices():
            raise ValueError(f"token {token} can't stand in blank {self._blank} of the reply.")
        if self._blank == len(self._form.options):
            return
        options = self._form.options[self._blank]
        self._open = [index for index in self._open if options[index][self._offset] == token]
        self._offset += 1
        if len(options[self._open[0]]) == self._offset:
            if self._form.once[self._blank]:
                self._spent.add(self._open[0])
            self._blank += 1
            self._enter()

    def _enter(self) -> None:
        self._offset = 0
        if self._blank < len(self._form.options):
            once = self._form.once[self._blank]
            count = len(self._form.options[self._blank])
            self._open = [i for i in range(count) if not (once and i in self._spent)]

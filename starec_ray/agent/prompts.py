"""The messages of fast and slow thinking, in words that fit films, music or products alike."""

from collections.abc import Sequence

from starec_ray.agent.formats import ReplyFormat
from starec_ray.agent.item_text import clean, describe, one_line
from starec_ray.agent.memory import Memory
from starec_ray.data.dataset import Item

Messages = list[dict[str, str]]

RANK_SYSTEM = "You know this user's taste. Predict what the user chooses next."
THINK = "First think in one short sentence between <think> and </think>."
REFLECT_SYSTEM = (
    "You keep the preference summary of this user. You made a prediction; now the real choice "
    "is known. Between <think> and </think> say in one sentence what was misjudged. Then write "
    "the new preference summary in one sentence that begins with Likes."
)
SUMMARIZE_SYSTEM = (
    "You keep the preference summary of this user. Between <think> and </think> say in one "
    "sentence what the history shows. Then write the preference summary in one sentence that "
    "begins with Likes."
)
# Attributes of a candidate that are shown as a digit, 0 … 9.
DIGITS = {
    "popularity": "how popular it is",
    "likeness": "how alike it is to what the user liked lately",
}


class PromptWriter:
    """Writes the messages; the memory is theirs to read, the reply format says how to answer.

    Args:
        reply_format: how rankings are written.
        attributes: of `item_text.ATTRIBUTES`, shown behind each item's name.
        most_popular: the popularity of the catalog's most popular item.
        think_before_ranking: ask for a rationale before the ranking.
    """

    def __init__(
        self,
        reply_format: ReplyFormat,
        attributes: Sequence[str],
        most_popular: int,
        think_before_ranking: bool,
    ) -> None:
        self.reply_format = reply_format
        self.attributes = tuple(attributes)
        self.most_popular = most_popular
        self.think_before_ranking = think_before_ranking

    def rank(self, memory: Memory, candidates: Sequence[Item]) -> Messages:
        system = [RANK_SYSTEM]
        if self.think_before_ranking:
            system.append(THINK)
        system.append(self.reply_format.instruction)
        if digits := [DIGITS[a] for a in self.attributes if a in DIGITS]:
            are = "digits of a candidate are" if len(digits) > 1 else "digit of a candidate is"
            system.append(f"The {are} {' and '.join(digits)}.")
        names = self.reply_format.names(candidates)
        lines = [
            *self._user(memory),
            *self._history(memory),
            "Candidates:",
            *(self._line(n, item, memory) for n, item in zip(names, candidates, strict=True)),
            # Last: rankings of one case with other summaries have all before it in common.
            *self._summary(memory),
        ]
        return _messages(" ".join(system), lines)

    def reflect(
        self, memory: Memory, candidates: Sequence[Item], predicted: Sequence[int], chosen: int
    ) -> Messages:
        """`predicted` and `chosen` are indices of `candidates`; the top three are shown."""
        names = self.reply_format.names(candidates)

        def line(index: int) -> str:
            return self._line(names[index], candidates[index], memory)

        lines = [
            *self._memory(memory),
            "You predicted:",
            *(line(index) for index in predicted[:3]),
            f"The user chose, your rank {list(predicted).index(chosen) + 1}:",
            line(chosen),
        ]
        return _messages(REFLECT_SYSTEM, lines)

    def summarize(self, memory: Memory) -> Messages:
        return _messages(SUMMARIZE_SYSTEM, self._memory(memory))

    def _memory(self, memory: Memory) -> list[str]:
        return [*self._user(memory), *self._summary(memory), *self._history(memory)]

    def _user(self, memory: Memory) -> list[str]:
        known = [(clean(name), one_line(value)) for name, value in memory.profile.items()]
        profile = ", ".join(f"{name} {value}" for name, value in known if value)
        return [f"User: {profile}"] if profile else []

    def _summary(self, memory: Memory) -> list[str]:
        return [f"Summary: {memory.summary}"] if memory.summary else []

    def _history(self, memory: Memory) -> list[str]:
        shown = [a for a in self.attributes if a not in DIGITS]
        lines = [
            f"{'+' if liked else '-'} {clean(item.title)} "
            f"{describe(item, shown, self.most_popular)}".rstrip()
            for item, liked in memory.history
        ]
        return ["Latest, + liked, - not:", *lines] if lines else []

    def _line(self, name: str, item: Item, memory: Memory) -> str:
        attributes = describe(item, self.attributes, self.most_popular, memory.liked)
        return self.reply_format.line(name, attributes)


def _messages(system: str, lines: Sequence[str]) -> Messages:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": "\n".join(lines)},
    ]

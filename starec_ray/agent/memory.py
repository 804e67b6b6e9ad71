"""A user's memory: profile, history with feedback, preference summary."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from starec_ray.agent.item_text import clean
from starec_ray.agent.likeness import RECENT
from starec_ray.data.dataset import Case, Item

MAX_SUMMARY = 600  # characters; a reflection that writes more is cut here


@dataclass(frozen=True, slots=True)
class Memory:
    """What an agent knows of its user before a ranking.

    `history` is oldest first; each entry is an item and whether the user liked it. `liked` are
    the newest liked items, those no longer at hand too.
    """

    profile: dict[str, str]
    history: tuple[tuple[Item, bool], ...]
    liked: tuple[Item, ...]
    summary: str

    @classmethod
    def of(cls, case: Case, summary: str) -> "Memory":
        liked = tuple(item for item, was_liked in case.history if was_liked)[-RECENT:]
        return cls(case.profile, case.history, liked, summary)

    def latest(self, n: int) -> "Memory":
        """The same memory with only the newest `n` interactions at hand."""
        return replace(self, history=self.history[len(self.history) - n :] if n else ())


def digest(history: Sequence[tuple[Item, bool]]) -> str:
    """A preference summary by counting: the memory's first one, before any reflection.

    Names the commonest tags, decades and people of what was liked, then the commonest tag that
    was only ever disliked, in words like "Likes Drama, Crime; 1990s, 1970s; not Horror."
    """
    liked = [item for item, was_liked in history if was_liked]
    if not liked:
        return "No preferences known yet."
    tags = _commonest((tag for item in liked for tag in item.tags), 3)
    decades = _commonest((f"{item.year // 10 * 10}s" for item in liked if item.year), 2)
    people = _commonest((p for item in liked for p in item.people), 2, at_least=2)
    liked_tags = {clean(tag) for item in liked for tag in item.tags}
    disliked = (tag for item, was_liked in history if not was_liked for tag in item.tags)
    avoided = _commonest((tag for tag in disliked if clean(tag) not in liked_tags), 1, at_least=2)
    parts = [", ".join(part) for part in (tags, decades, people) if part]
    if not parts:  # a catalog without attributes: only the names are left to say
        parts = [", ".join(clean(item.title) for item in liked[-3:])]
    return f"Likes {'; '.join(parts)}{'; not ' + avoided[0] if avoided else ''}."


def _commonest(words: Iterable[str], n: int, at_least: int = 1) -> list[str]:
    counts = Counter(clean(word) for word in words)
    return [word for word, count in counts.most_common(n) if count >= at_least]

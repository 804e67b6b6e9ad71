"""How alike items are, by what the catalog says of them."""

from collections.abc import Sequence

import numpy as np

from starec_ray.data.dataset import Item

YEARS_TO_FORGET = 6.0  # likeness of two items falls by e for so many years between them
RECENT = 10  # liked items that a candidate is compared with


def likeness(item: Item, others: Sequence[Item], attributes: frozenset[str]) -> float:
    """Mean likeness, 0 … 1, by those of the attributes tags, people and year that are asked for.

    Tags and people count by what is shared (Jaccard), years by closeness.
    """
    parts: list[float] = []
    for other in others:
        if attributes & {"tags", "people"}:
            mine, theirs = _labels(item, attributes), _labels(other, attributes)
            parts.append(len(mine & theirs) / len(mine | theirs) if mine | theirs else 0.0)
        if "year" in attributes and item.year is not None and other.year is not None:
            parts.append(float(np.exp(-abs(item.year - other.year) / YEARS_TO_FORGET)))
    return sum(parts) / len(parts) if parts else 0.0


def likeness_level(item: Item, liked: Sequence[Item]) -> int:
    """0 … 9, in tenths: the likeness in tags and people to items that the user liked."""
    return min(9, int(10 * likeness(item, liked, frozenset({"tags", "people"}))))


def _labels(item: Item, attributes: frozenset[str]) -> set[str]:
    tags = item.tags if "tags" in attributes else ()
    return {*tags, *(item.people if "people" in attributes else ())}

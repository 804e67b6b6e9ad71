"""Items as words: what a prompt shows of an item, safe to stand beside instructions."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from starec_ray.agent.likeness import likeness_level
from starec_ray.data.dataset import Item

ATTRIBUTES = ("year", "tags", "people", "popularity", "likeness")
MAX_TEXT = 120  # characters of one title or attribute; the rest is cut
# Brackets spell control tokens ("<|im_end|>", "</s>", "[INST]") and think tags: they are
# replaced by look-alikes, so that item text stays data in every chat template.
_LOOKALIKES = {"<": "‹", ">": "›", "[": "(", "]": ")", "{": "(", "}": ")"}
_APOSTROPHES = str.maketrans("‘’", "''")
_ARTICLES = ("the ", "a ", "an ")


def clean(text: str, most: int = MAX_TEXT) -> str:
    """One line of harmless text: no control characters, no brackets, `most` characters at most."""
    return one_line(text, most) or "untitled"


def one_line(text: str, most: int = MAX_TEXT) -> str:
    """As `clean`, but "" where no letter or digit is left."""
    line = " ".join("".join(map(_harmless, text)).split())[:most].strip()
    return line if any(map(str.isalnum, line)) else ""


def without_brackets(text: str) -> str:
    """The text with look-alikes for its brackets, and else as it is."""
    return "".join(map(_lookalike, text))


@lru_cache(maxsize=4096)
def _harmless(character: str) -> str:
    return " " if unicodedata.category(character)[0] in "CZ" else _lookalike(character)


@lru_cache(maxsize=4096)
def _lookalike(character: str) -> str:
    """Of brackets in disguise too: normalised, "＜" and "≮" hold a "<"."""
    parts = unicodedata.normalize("NFKD", character)
    return next((_LOOKALIKES[part] for part in parts if part in _LOOKALIKES), character)


def article_last(title: str) -> str:
    """The telling word first: "The Matrix" → "Matrix, The"."""
    for article in _ARTICLES:
        if title.lower().startswith(article) and len(title) > len(article):
            return f"{title[len(article) :]}, {title[: len(article) - 1]}"
    return title


def distinct_names(items: Sequence[Item]) -> list[str]:
    """Cleaned titles, told apart where they are equal: by year, else by a running number."""
    names = [clean(item.title) for item in items]
    for index in _shared(names):
        if (year := items[index].year) is not None:
            names[index] += f" ({year})"
    while shared := _shared(names):
        for index in shared:
            names[index] += f" (#{index + 1})"
    return names


def folded(text: str) -> str:
    """Without regard to capitals, the shape of apostrophes, and how letters with accents are put
    together."""
    return unicodedata.normalize("NFC", text.casefold()).translate(_APOSTROPHES)


def _shared(names: Sequence[str]) -> list[int]:
    """Where a name stands that stands elsewhere too."""
    counts = Counter(map(folded, names))
    return [index for index, name in enumerate(names) if counts[folded(name)] > 1]


def popularity_level(popularity: int, most_popular: int) -> int:
    """0 … 9, by the square root of the share of the most popular item's interactions.

    The root spreads the long tail: level 9 is within 20 % of the top, level 0 below 1 %.
    """
    return min(9, int(9.99 * (popularity / most_popular) ** 0.5)) if most_popular else 0


def describe(
    item: Item, attributes: Sequence[str], most_popular: int, liked: Sequence[Item] = ()
) -> str:
    """What a prompt shows of an item beside its name: the attributes asked for, in their order.

    `liked` are the items that "likeness" compares it with.
    """
    parts = []
    for attribute in attributes:
        if attribute == "year" and item.year is not None:
            parts.append(f"({item.year})")
        elif attribute == "tags" and item.tags:
            parts.append(" ".join(clean(tag) for tag in item.tags[:4]))
        elif attribute == "people" and item.people:
            parts.append("by " + ", ".join(clean(person) for person in item.people[:2]))
        elif attribute == "popularity":
            parts.append(str(popularity_level(item.popularity, most_popular)))
        elif attribute == "likeness":
            parts.append(str(likeness_level(item, liked)))
    return " ".join(parts)

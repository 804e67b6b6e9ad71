"""Reply formats: how a ranking is written as text, and how that text is read back.

A format is one replaceable part of the agent. It says how candidates are named in the prompt,
what the model is asked to write, and reads a reply leniently (whatever can be understood is
used) while judging it strictly (every name missing, repeated or invented is counted).
"""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from starec_ray.agent.item_text import article_last, distinct_names, folded
from starec_ray.data.dataset import Item

MAX_REPLY = 20_000  # characters read of one reply
# What models put around a name (bullets, emphasis, quotes), and behind its number in a list.
OPENING = "*-–—•#_`\"'“”„‟«»‹›‘’‚《「『"
CLOSING = "*_`\"'“”„‟«»‹›‘’‚》」』"
# Possessive: of a long run of spaces each would try every split again.
NUMBERED = r"[^\S\n]*+[*\-#_]*+[^\S\n]*+\d{1,3}[^\S\n]*+(?:\\?[.):．、]|[-–—](?=\s))"
_BETWEEN = (",", ";", ">", "|")  # the names of a list that stands on one line
TOP_GRADE = 9
GRADES = tuple(str(grade) for grade in range(TOP_GRADE + 1))


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says of `n` candidates.

    `order` holds every candidate index once, best first; candidates that the reply doesn't
    name follow in the order shown, which is shuffled and so tells nothing. `grades` (0 … 9,
    beside the candidates) are there if the format gives them, and the reply one for each.
    """

    order: tuple[int, ...]
    missing: int
    repeated: int
    invented: int
    grades: tuple[int, ...] | None = None

    @property
    def whole(self) -> bool:
        """True if the reply is a permutation of the candidates and nothing else."""
        return not (self.missing or self.repeated or self.invented)


@dataclass(frozen=True, slots=True)
class Blank:
    """A place in a whole reply that one of `options` fills; a single option is fixed text.

    What fills a blank with `once` can't fill another one. No option begins another.
    """

    options: tuple[str, ...]
    once: bool = False


class ReplyFormat(ABC):
    """One way of writing a ranking."""

    name: str
    instruction: str  # the part of the system message that says how to answer
    graded = False  # whether the open blanks are the candidates' grades, in the order listed

    @abstractmethod
    def names(self, candidates: Sequence[Item]) -> list[str]:
        """How the prompt names each candidate, beside `candidates`."""

    def line(self, name: str, attributes: str) -> str:
        """A candidate's line in the prompt."""
        return f"{name} {attributes}".rstrip()

    @abstractmethod
    def blanks(self, candidates: Sequence[Item]) -> list[Blank]:
        """What every whole reply consists of; constrained decoding keeps to it."""

    @abstractmethod
    def fill(self, order: Sequence[int], grades: Sequence[int]) -> list[int]:
        """The option for each blank: `order` is best first, `grades` (0 … 9) by candidate."""

    def write(self, candidates: Sequence[Item], order: Sequence[int], grades: Sequence[int]) -> str:
        """A whole reply: `order` is best first, `grades` (0 … 9) beside `candidates`."""
        chosen = zip(self.blanks(candidates), self.fill(order, grades), strict=True)
        return "".join(blank.options[option] for blank, option in chosen)

    @abstractmethod
    def read(self, reply: str, candidates: Sequence[Item]) -> Reading:
        """Reads any text whatever; never raises."""


class GradesFormat(ReplyFormat):
    """Grade each candidate in the order listed: its first word, then a digit.

    Walking down the list needs no memory of what was already named, so that repetition, the
    main fault of small models, has no occasion; the reply takes 3 tokens a candidate. Sorting
    by grade makes the ranking; equal grades keep the order shown.

    A line of the prompt begins with the same word in the same tokens (the space before it is a
    part of them), and what is known of the item follows at once: a small model finds it by
    looking for what stood behind that word before.
    """

    name = "grades"
    graded = True
    instruction = (
        "For each candidate, in the order listed, write its first word and, joined to it, a "
        f"grade from 0 (will not choose it) to {TOP_GRADE} (will choose it)."
    )

    def names(self, candidates: Sequence[Item]) -> list[str]:
        spelt = [replace(item, title=_unaccented(item.title)) for item in candidates]
        return [article_last(name) for name in distinct_names(spelt)]

    def line(self, name: str, attributes: str) -> str:
        word = first_word(name)
        rest = f" ({name})" if name != word else ""
        return f" {word} {attributes}".rstrip() + rest

    def blanks(self, candidates: Sequence[Item]) -> list[Blank]:
        words = [Blank((" " + first_word(name),)) for name in self.names(candidates)]
        return [blank for word in words for blank in (word, Blank(GRADES))]

    def fill(self, order: Sequence[int], grades: Sequence[int]) -> list[int]:
        return [option for grade in grades for option in (0, grade)]

    def read(self, reply: str, candidates: Sequence[Item]) -> Reading:
        if exact := re.fullmatch(self._pattern(candidates), f" {reply.strip()}"):
            grades = tuple(map(int, exact.groups()))
            order = sorted(range(len(grades)), key=lambda index: -grades[index])
            return Reading(tuple(order), 0, 0, 0, grades)
        return self._read_leniently(reply, candidates)

    def _pattern(self, candidates: Sequence[Item]) -> str:
        """A whole reply as it is asked for: what else its names could be taken for ("13", grade 3,
        or "1", grade 3) doesn't matter then."""
        parts = (
            re.escape(blank.options[0]) if len(blank.options) == 1 else "([0-9])"
            for blank in self.blanks(candidates)
        )
        return "".join(parts)

    def _read_leniently(self, reply: str, candidates: Sequence[Item]) -> Reading:
        names = self.names(candidates)
        # A text that stands for several candidates stands for them in the order listed.
        owners: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            for text in {folded(name), folded(first_word(name))}:
                owners.setdefault(text, []).append(index)
        alternatives = "|".join(re.escape(t) for t in sorted(owners, key=len, reverse=True))
        # Name and grade stand on one line: below it may begin the next one's number.
        entry = re.compile(
            rf"(?:^{NUMBERED}\s*[{re.escape(OPENING)}]*)??(?<![^\s,;.{re.escape(OPENING)}])"
            rf"({alternatives})(?:[^\S\n]|[:=(\-–—{re.escape(CLOSING)}]){{0,6}}([0-9])(?![0-9])",
            re.MULTILINE,
        )
        text = folded(_unaccented(reply[:MAX_REPLY]))
        grades: dict[int, int] = {}
        repeated = 0
        for match in entry.finditer(text):
            free = [index for index in owners[match[1]] if index not in grades]
            if free:
                grades[free[0]] = int(match[2])
            else:
                repeated += 1
        invented = sum(1 for word in entry.sub(" ", text).split() if any(map(str.isalnum, word)))
        order = sorted(grades, key=lambda index: (-grades[index], index))
        reading = _completed(order, len(candidates), repeated, invented)
        if reading.missing:
            return reading
        return replace(reading, grades=tuple(grades[i] for i in range(len(candidates))))


class TitlesFormat(ReplyFormat):
    """List the candidates by title, best first, one a line and numbered, as in the paper.

    What stands behind the title on its line, set off by a sign (the short explanation, the year in
    brackets), isn't judged.
    """

    name = "titles"
    instruction = (
        "List all candidates, best first, one a line: the number, a dot, the title exactly as "
        "it is written. Name each candidate once and nothing else."
    )

    def names(self, candidates: Sequence[Item]) -> list[str]:
        return distinct_names(candidates)

    def blanks(self, candidates: Sequence[Item]) -> list[Blank]:
        titles = Blank(tuple(f" {name}\n" for name in self.names(candidates)), once=True)
        numbers = [Blank((f"{rank}.",)) for rank in range(1, len(candidates) + 1)]
        return [blank for number in numbers for blank in (number, titles)]

    def fill(self, order: Sequence[int], grades: Sequence[int]) -> list[int]:
        return [option for index in order for option in (0, index)]

    def read(self, reply: str, candidates: Sequence[Item]) -> Reading:
        names = [folded(name) for name in self.names(candidates)]
        plain = [_unaccented(name) for name in names]
        order: list[int] = []
        repeated = invented = 0
        for line in folded(reply[:MAX_REPLY]).splitlines():
            entry = re.sub(f"^{NUMBERED}", "", line)
            if not any(map(str.isalnum, entry)):
                continue
            meant, rest = _meant(entry, names)
            if not meant:
                meant, rest = _meant(line, names)
            if not meant:
                meant, rest = _meant(_unaccented(entry), plain)
            if not meant:
                invented += 1
            while meant:  # the names of a line, if it is a list itself
                free = [index for index in meant if index not in order]
                if free:
                    order.append(free[0])
                else:
                    repeated += 1
                meant, rest = _meant(rest[1:], names) if rest[:1] in _BETWEEN else ([], "")
        return _completed(order, len(candidates), repeated, invented)


def grades_of(order: Sequence[int]) -> list[int]:
    """Grades in equal steps down a ranking (candidate indices, best first), by candidate."""
    grades = [0] * len(order)
    for place, index in enumerate(order):
        grades[index] = TOP_GRADE - place * (TOP_GRADE + 1) // len(order)
    return grades


def first_word(name: str) -> str:
    """The leading words of a name up to the first that ends in a letter; else all of it.

    A grade is joined to it, so that it must not end in a digit ("12 Angry", not "12").
    """
    words = name.split()
    for count, word in enumerate(words, start=1):
        bare = word.rstrip(",:;.!?'\"")
        if bare and bare[-1].isalpha():
            return " ".join([*words[: count - 1], bare])
    return name


def _unaccented(text: str) -> str:
    """ "Amélie" → "Amelie": small models stumble over letters of several tokens. In other scripts
    the marks make other letters, and stay."""
    kept, is_latin = [], False
    for character in unicodedata.normalize("NFKD", text):
        if not unicodedata.combining(character):
            is_latin = unicodedata.name(character, "").startswith("LATIN ")
        elif is_latin:
            continue
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))


def _meant(entry: str, names: Sequence[str]) -> tuple[list[int], str]:
    """The names that an entry begins with, the longest of them, and what stands behind; there may
    be marks before it.

    A name that has marks of its own is taken with them first: "#Alive" beside "Alive".
    """
    marks, text = _marks_and_text(entry)
    known = [_marks_and_text(name) for name in names]
    alike = [index for index, (_, own) in enumerate(known) if _begins_with(text, own)]
    meant = [index for index in alike if marks.endswith(known[index][0])] or alike
    longest = max((len(names[index]) for index in meant), default=0)
    meant = [index for index in meant if len(names[index]) == longest]
    return meant, text[len(known[meant[0]][1]) :].lstrip(f" \t{CLOSING}") if meant else ""


def _marks_and_text(text: str) -> tuple[str, str]:
    """The marks before a name, and what follows."""
    bare = text.lstrip(f" \t{OPENING}")
    return text[: len(text) - len(bare)], bare


def _begins_with(text: str, name: str) -> bool:
    """True if `text` begins with `name` and no word goes on with it: "Rocky" begins "Rocky - a
    classic", and neither "Rockys" nor "Rocky IV" nor "Rocky & Co"."""
    if not text.startswith(name):
        return False
    behind = text[len(name) :].lstrip()[:1]
    return not behind.isalnum() and behind not in ("&", "+")


def _completed(order: list[int], n: int, repeated: int, invented: int) -> Reading:
    named = set(order)
    unnamed = [index for index in range(n) if index not in named]
    return Reading((*order, *unnamed), len(unnamed), repeated, invented)


FORMATS: dict[str, ReplyFormat] = {f.name: f for f in (GradesFormat(), TitlesFormat())}

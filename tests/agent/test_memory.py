"""A user's memory: what it likens to, and the digest that it begins with."""

from starec_ray.agent.memory import Memory, digest
from starec_ray.data.dataset import Case, Item
from tests.agent.test_prompts import HISTORY


def numbered(*numbers: int) -> list[Item]:
    return [Item(str(n), f"Film {n}", None, (), (), 0) for n in numbers]


def test_a_memory_likens_to_the_latest_ten_that_were_liked():
    history = tuple((film, film.item_id != "11") for film in numbered(*range(14)))
    case = Case("u/0", "u", "train", 0, None, history, (), {}, 14)
    assert list(Memory.of(case, "").liked) == numbered(3, 4, 5, 6, 7, 8, 9, 10, 12, 13)


def test_the_digest_counts_what_was_liked_and_what_was_not():
    assert digest(HISTORY) == ("Likes Action, Sci-Fi, Crime; 1990s; Lana Wachowski, Michael Mann.")
    assert digest(()) == "No preferences known yet."


def test_the_digest_ends_with_the_tag_that_was_never_liked():
    def tagged(*tags: str) -> Item:
        return Item("1", "Film", None, tags, (), 0)

    liked = [(tagged("Drama", "Crime"), True)]
    disliked = [(tagged("Drama", "Horror"), False)] * 2 + [(tagged("War"), False)]
    assert digest(liked + disliked) == "Likes Drama, Crime; not Horror."
    assert digest(liked + disliked[1:]) == "Likes Drama, Crime."  # once is chance
    often = [(tagged("Drama", "Crime", "Noir"), False)] * 3  # liked too, all but the commonest left
    also = [(tagged("Noir"), True)]
    assert digest(liked + also + often + disliked) == "Likes Drama, Crime, Noir; not Horror."


def test_the_digest_of_items_without_attributes_names_the_latest():
    history = [(film, True) for film in numbered(1, 2, 3, 4, 5)]
    assert digest(history) == "Likes Film 3, Film 4, Film 5."

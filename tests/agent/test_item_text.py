"""Items as words: short, one line each, told apart, and no instructions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starec_ray.agent.item_text import clean, describe, distinct_names, popularity_level
from starec_ray.data.dataset import Item


def test_of_many_tags_and_people_the_first_are_shown():
    many = Item("1", "Heat", None, ("A", "B", "C", "D", "E"), ("X", "Y", "Z"), 0)
    assert describe(many, ("tags", "people"), 1) == "A B C D by X, Y"


@pytest.mark.parametrize(
    ("popularity", "most", "level"), [(100, 100, 9), (25, 100, 4), (0, 100, 0), (0, 0, 0)]
)
def test_popularity_levels_follow_the_square_root(popularity, most, level):
    assert popularity_level(popularity, most) == level


def test_equal_titles_are_told_apart_by_year_or_number():
    def names(*items: tuple[str, int | None]) -> list[str]:
        return distinct_names([Item(str(i), *item, (), (), 0) for i, item in enumerate(items)])

    assert names(("Psycho", 1960), ("Psycho", 1998)) == ["Psycho (1960)", "Psycho (1998)"]
    assert names(("Live [1]", None), ("Live (1)", None)) == ["Live (1) (#1)", "Live (1) (#2)"]
    assert names(("Heat", None), ("Heat", None), ("Heat (#1)", None)) == [
        "Heat (#1) (#1)",
        "Heat (#2)",
        "Heat (#1) (#3)",
    ]


@given(st.text())
def test_cleaned_text_is_one_line_without_brackets(text):
    line = clean(text)
    assert line and "\n" not in line and not set(line) & set("<>[]{}")


def test_characters_that_steer_a_terminal_or_a_line_are_cleaned_away():
    assert clean("Al\x1bi\u202een\x00s") == "Al i en s"

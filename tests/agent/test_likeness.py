"""How alike items are, and the digit that says so."""

import math
from dataclasses import replace

import pytest

from starec_ray.agent.likeness import likeness, likeness_level
from tests.agent.test_teacher import ALIEN, BLADE, CASINO, HEAT


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (["tags"], 1 / 2),  # Sci-Fi of Horror, Sci-Fi
        (["people"], 1.0),
        (["tags", "people"], 2 / 3),
        ([], 0.0),
    ],
)
def test_likeness_counts_what_is_shown(attributes, expected):
    assert likeness(BLADE, [ALIEN], frozenset(attributes)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("liked", "level"), [([], 0), ([ALIEN], 6), ([BLADE], 9), ([HEAT], 0), ([ALIEN, HEAT], 3)]
)
def test_a_likeness_level_is_in_tenths_and_ends_at_nine(liked, level):
    assert likeness_level(BLADE, liked) == level  # 2 of 3 labels are Alien's


def test_likeness_of_the_same_year_is_one():
    assert likeness(HEAT, [CASINO], frozenset(["year"])) == 1.0


def test_likeness_falls_by_e_for_six_years_either_way():
    year = frozenset(["year"])
    assert likeness(ALIEN, [replace(HEAT, year=1985)], year) == pytest.approx(1 / math.e)
    assert likeness(replace(HEAT, year=1985), [ALIEN], year) == pytest.approx(1 / math.e)

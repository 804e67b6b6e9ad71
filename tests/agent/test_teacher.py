"""The template teacher: absolute grades, by what the student is shown and by nothing else."""

import pytest

from starec_ray.agent.item_text import popularity_level
from starec_ray.agent.likeness import likeness, likeness_level
from starec_ray.agent.tasks import RankTask
from starec_ray.agent.teacher import TemplateTeacher
from starec_ray.data.dataset import Case, Item

ALIEN = Item("a", "Alien", 1979, ("Horror", "Sci-Fi"), ("Ridley Scott",), 100)
HEAT = Item("h", "Heat", 1995, ("Crime", "Drama"), ("Michael Mann",), 49)
BLADE = Item("b", "Blade Runner", 1982, ("Sci-Fi",), ("Ridley Scott",), 25)
CASINO = Item("c", "Casino", 1995, ("Crime", "Drama"), ("Martin Scorsese",), 0)
ITEMS = (ALIEN, HEAT, BLADE, CASINO)


class TwoCases:
    """The part of a dataset that a teacher reads."""

    def __init__(self, *history: Item) -> None:
        self.items = {item.item_id: item for item in ITEMS}
        liked = tuple((item, True) for item in history)
        self._case = Case("u/0", "u", "train", 0, None, liked, ITEMS, {}, 1)

    def case(self, case_id: str) -> Case:
        return self._case

    def case_ids(self, split: str) -> list[str]:
        return ["u/0", "u/1"]


def grades(history: list[Item], attributes: list[str], popularity_weight: float) -> list[int]:
    teacher = TemplateTeacher(TwoCases(*history), attributes, popularity_weight)
    return teacher.rank(RankTask("u/0", ""))["grades"]


def test_by_popularity_alone_a_grade_is_the_popularity_level():
    assert grades([HEAT], ["popularity", "tags"], 1000.0) == [9, 6, 4, 0]
    assert [popularity_level(item.popularity, 100) for item in ITEMS] == [9, 6, 4, 0]


def test_without_popularity_grades_are_spread_evenly_and_ordered_by_likeness():
    alien, heat, blade, casino = grades([HEAT, ALIEN], ["tags"], 0.0)
    assert heat == casino > blade  # Casino's tags are Heat's; Blade Runner shares one of Alien's
    assert alien == heat


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


def test_a_likeness_digit_that_is_shown_is_graded_though_tags_are_not():
    alien, heat, blade, casino = grades([ALIEN], ["likeness"], 0.0)
    assert alien > blade > heat == casino


def test_likeness_of_the_same_year_is_one():
    assert likeness(HEAT, [CASINO], frozenset(["year"])) == 1.0


def test_a_user_without_history_is_graded_all_the_same():
    assert len(grades([], ["tags"], 0.0)) == len(ITEMS)

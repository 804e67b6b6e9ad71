"""The template teacher: absolute grades, by what the student is shown and by nothing else."""

from dataclasses import replace

from starec_ray.agent.item_text import popularity_level
from starec_ray.agent.tasks import RankTask, ReflectTask, SummarizeTask
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
        self.most_popular = max(item.popularity for item in ITEMS)
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


def test_a_ranking_is_by_likeness_to_the_latest_ten_that_were_liked():
    dataset = TwoCases()
    history = [(HEAT, True)] * 8 + [(ALIEN, True)] * 10 + [(CASINO, False)] * 5
    dataset._case = replace(dataset._case, history=tuple(history))
    teacher = TemplateTeacher(dataset, ["tags"], 0.0)
    assert teacher.rank(RankTask("u/0", ""))["ranking"] == ["a", "b", "h", "c"]


def test_a_likeness_digit_that_is_shown_is_graded_though_tags_are_not():
    alien, heat, blade, casino = grades([ALIEN], ["likeness"], 0.0)
    assert alien > blade > heat == casino


def test_a_user_without_history_is_graded_all_the_same():
    assert len(grades([], ["tags"], 0.0)) == len(ITEMS)


def test_grades_are_calibrated_on_training_users_alone():
    asked = []
    dataset = TwoCases(HEAT)
    dataset.case_ids = lambda split: asked.append(split) or ["u/0"]
    TemplateTeacher(dataset, ["tags"], 0.0)
    assert asked == ["train"]


def test_a_reflection_counts_the_choice_in_and_says_what_was_misjudged():
    teacher = TemplateTeacher(TwoCases(HEAT), ["tags"], 0.0)
    wrong = teacher.reflect(ReflectTask("u/0", "", ("h", "c", "b", "a"), "a"))
    assert wrong["rationale"] == (
        "I put Heat first for Crime Drama of 1995, but the user chose Alien: Horror Sci-Fi of 1979."
    )
    assert wrong["summary"] == "Likes Crime, Drama, Horror; 1990s, 1970s."
    right = teacher.reflect(ReflectTask("u/0", "", ("a", "c", "b", "h"), "a"))
    assert right["rationale"] == "The prediction was right: Horror Sci-Fi of 1979 still fits."


def test_a_summary_is_of_all_that_was_liked_and_its_rationale_of_the_latest_two():
    teacher = TemplateTeacher(TwoCases(HEAT, BLADE, ALIEN), ["tags"], 0.0)
    told = teacher.summarize(SummarizeTask("u/0"))
    assert told["rationale"] == (
        "The latest liked are Blade Runner, Sci-Fi of 1982 and Alien, Horror Sci-Fi of 1979."
    )
    assert told["summary"] == "Likes Sci-Fi, Crime, Drama; 1990s, 1980s; Ridley Scott."

"""What is kept of a teacher's answers, and what it is told of the others."""

import pytest

from starec_ray.data.dataset import Case, Item
from starec_ray.distill.screening import (
    judge_follow_up,
    judge_ranking,
    judge_summary,
    preference_words,
    rethink,
)

NAMES = {"a": "Alien", "b": "Big", "c": "Clue", "d": "Dune"}
SOUND = {
    "rationale": "The latest were dark.",
    "ranking": ["a", "b", "c", "d"],
    "malformed": False,
    "missing": 0,
    "repeated": 0,
    "invented": 0,
}


def item(item_id: str, title: str, **more) -> Item:
    return Item(item_id, title, more.get("year"), more.get("tags", ()), more.get("people", ()), 1)


def verdict(changes: dict, target: str = "a", score: float = 1.0) -> tuple[str, str]:
    judgement = judge_ranking(SOUND | changes, NAMES, target, score=score, min_score=0.5)
    return judgement.verdict, judgement.fault


def test_a_sound_ranking_is_kept():
    assert verdict({}) == ("kept", "")


def test_a_ranking_below_the_threshold_is_told_which_item_stood_behind_which():
    told, fault = verdict({}, target="c", score=0.49)
    assert told == "low score"
    assert "The user chose Clue, which you placed 3 of 4, behind Alien; Big." in fault


def test_the_threshold_itself_and_three_words_are_enough():
    assert verdict({}, score=0.5)[0] == "kept"
    assert judge_follow_up(["a", "b"], "b", score=0.5, min_score=0.5).verdict == "kept"
    assert verdict({"rationale": "It is dark."})[0] == "kept"


def test_a_ranking_that_is_not_whole_is_told_what_is_missing_repeated_or_invented():
    told, fault = verdict({"malformed": True, "missing": 2, "repeated": 1, "invented": 3})
    assert told == "malformed"
    for part in ("missing: Clue; Dune", "1 are named more than once", "3 names or words"):
        assert part in fault


def test_of_many_missing_candidates_the_first_five_are_named_and_the_others_counted():
    ids = [str(number) for number in range(9)]
    names = {item_id: f"Film {item_id}" for item_id in ids}
    reading = SOUND | {"ranking": ids, "malformed": True, "missing": 7}
    fault = judge_ranking(reading, names, "0", score=0.0, min_score=0.5).fault
    assert "missing: Film 2; Film 3; Film 4; Film 5; Film 6 and 2 more." in fault


def test_a_ranking_without_a_thought_is_not_kept_however_good():
    told, fault = verdict({"rationale": "Well, yes"})
    assert told == "no rationale" and "<think>" in fault


@pytest.fixture
def case() -> Case:
    history = ((item("h", "Heat", year=1995, tags=("Crime",), people=("Mann",)), True),)
    return Case("u/0", "u", "train", 0, None, history, (item("a", "Alien"),), {}, 1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"summary": "Likes crime above all."}, "kept"),
        ({"summary": "Likes films of the 1990s."}, "kept"),
        ({"summary": "Likes what Mann made."}, "kept"),
        ({"summary": "Likes good films."}, "no preference words"),
        ({"summary": "Likes crime.", "rationale": ""}, "no rationale"),
        ({"summary": "", "malformed": True}, "malformed"),
    ],
)
def test_a_summary_has_thoughts_and_words_that_a_preference_can_be_about(case, changes, told):
    assert judge_summary(SOUND | changes, case).verdict == told


@pytest.mark.parametrize(
    ("title", "tags", "summary", "told"),
    [
        ("M (1931)", (), "Likes many films from the middle.", "no preference words"),
        ("M (1931)", (), "Likes M (1931) above all.", "kept"),
        ("M", (), "Likes Bond's M.", "no preference words"),
        ("Up", (), "Likes what cheers up.", "no preference words"),
        ("Up", (), "Likes Up.", "no preference words"),
        ("Big", (), "Likes Big.", "kept"),
        ("Heat", ("War", "Pop"), "Likes popular films that reward.", "no preference words"),
        ("Heat", ("War",), "Likes anti-war films.", "kept"),
        ("Heat", ("Thriller",), "Likes thrillers.", "kept"),
        ("Heat", ("Sci-Fi",), "Likes sci-fi.", "kept"),
        ("Airplane!", (), "Likes Airplane! and what is like it.", "kept"),
        ("…And Justice", (), 'Likes "…and justice".', "kept"),
        ("Straße", (), "Likes STRASSE.", "kept"),
        ("Amélie", (), "Likes Ame\u0301lie.", "kept"),
        ("!!!", ("", "–"), "Likes it untitled!!!", "no preference words"),
        ("Heat", ("戦争",), "Likes 戦争映画.", "kept"),  # no spaces between words
    ],
)
def test_a_preference_is_named_by_whole_words(title, tags, summary, told):
    history = ((item("h", title, tags=tags), True),)
    case = Case("u/0", "u", "train", 0, None, history, (item("a", "Alien"),), {}, 1)
    assert judge_summary(SOUND | {"summary": summary}, case).verdict == told


def test_preference_words_are_those_of_the_history_and_the_candidates(case):
    assert preference_words(case) == {"crime", "mann", "heat", "1990s", "alien"}


def test_a_reflection_is_judged_by_the_ranking_that_it_led_to():
    assert judge_follow_up(["a", "b"], "b", score=0.63, min_score=0.5).verdict == "kept"
    judgement = judge_follow_up(["a", "b", "c"], "c", score=0.5, min_score=0.6)
    assert judgement.verdict == "low score" and "chose then 3 of 3" in judgement.fault


def test_a_rethink_is_the_conversation_with_the_answer_and_its_fault():
    asked = [{"role": "user", "content": "Rank."}]
    again = rethink(asked, "1. Alien", "Big is missing.")
    assert again[:1] == asked and len(asked) == 1
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert again[1]["content"] == "1. Alien" and again[2]["content"].startswith("Big is missing.")

"""Reply formats: what is written is read back whole; whatever is wrong is counted."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starec_ray.agent.formats import FORMATS, MAX_REPLY, first_word, grades_of
from starec_ray.data.dataset import Item


def item(item_id: str, title: str, year: int | None = None) -> Item:
    return Item(item_id, title, year, (), (), 0)


FILMS = [
    item("a", "The Godfather", 1972),
    item("b", "12 Angry Men", 1957),
    item("c", "Star Wars", 1977),
    item("d", "Star Trek", 1979),
    item("e", "2001: A Space Odyssey", 1968),
    item("f", "Psycho", 1960),
    item("g", "Psycho", 1998),
]
titles = st.text(min_size=0, max_size=40)
catalogs = st.lists(titles, min_size=1, max_size=20).map(
    lambda names: [item(str(i), name, 1990) for i, name in enumerate(names)]
)


@pytest.mark.parametrize("name", FORMATS)
@given(candidates=catalogs, data=st.data())
def test_a_written_ranking_is_read_back_whole(name, candidates, data):
    order = data.draw(st.permutations(range(len(candidates))))
    written = FORMATS[name].write(candidates, order, grades_of(order))
    reading = FORMATS[name].read(written, candidates)
    grades = grades_of(order)
    assert reading.whole
    assert reading.grades in (None, tuple(grades))
    assert [grades[i] for i in reading.order] == sorted(grades, reverse=True)
    assert reading.order == tuple(order) or FORMATS[name].graded


@pytest.mark.parametrize("name", FORMATS)
def test_a_written_ranking_of_films_is_whole_and_in_order(name):
    order = [3, 0, 6, 1, 2, 5, 4]
    reading = FORMATS[name].read(FORMATS[name].write(FILMS, order, grades_of(order)), FILMS)
    assert reading.whole
    grades = grades_of(order)
    assert [grades[i] for i in reading.order] == sorted(grades, reverse=True)


def test_grades_made_from_a_ranking_fall_in_equal_steps_from_nine_on():
    assert grades_of([2, 0, 1]) == [6, 3, 9]
    assert grades_of(range(10)) == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert grades_of(range(20)) == sorted([*range(10), *range(10)], reverse=True)


@pytest.mark.parametrize("grades", [(3, 4, 9, 0), (1, 3, 3, 1), (0, 0, 0, 0)])
def test_grades_beside_names_that_end_or_begin_in_digits_are_read_as_they_were_written(grades):
    albums = [item("a", "1"), item("b", "3 Doors Down"), item("c", "13"), item("d", "19")]
    written = FORMATS["grades"].write(albums, range(4), grades)
    reading = FORMATS["grades"].read(written, albums)
    assert reading.whole and reading.grades == grades


def hostile(candidates: list[Item]) -> st.SearchStrategy[str]:
    """Replies of what a reader looks for, in any order, and of anything else."""
    told = [c.title for c in candidates] + [first_word(c.title) for c in candidates]
    signs = ["\n", " ", "9", "0", "1.", "10)", "-", "(1990)", "</think>", "<think>", "<|im_end|>"]
    return st.lists(st.sampled_from(told + signs) | st.text(max_size=8), max_size=60).map("".join)


@pytest.mark.parametrize("name", FORMATS)
@given(candidates=catalogs, data=st.data())
def test_hostile_text_never_raises_and_yields_a_permutation(name, candidates, data):
    reading = FORMATS[name].read(data.draw(hostile(candidates)), candidates)
    assert sorted(reading.order) == list(range(len(candidates)))
    assert 0 <= reading.missing <= len(candidates)
    assert reading.repeated >= 0 and reading.invented >= 0
    if reading.whole and reading.grades is not None:
        assert len(reading.grades) == len(candidates)


@given(order=st.permutations(range(len(FILMS))), at=st.integers(0, len(FILMS) - 1))
def test_a_list_of_titles_is_whole_until_a_line_is_lost_or_said_twice(order, at):
    titles = FORMATS["titles"]
    lines = titles.write(FILMS, order, grades_of(order)).splitlines()
    assert titles.read("\n".join(lines), FILMS).whole
    lost = titles.read("\n".join(lines[:at] + lines[at + 1 :]), FILMS)
    assert (lost.missing, lost.repeated, lost.order[-1]) == (1, 0, order[at])
    twice = titles.read("\n".join([*lines, lines[at]]), FILMS)
    assert (twice.missing, twice.repeated, twice.order) == (0, 1, tuple(order))


@pytest.mark.parametrize("name", FORMATS)
def test_a_ranking_with_a_name_too_many_is_not_whole(name):
    order = range(len(FILMS))
    reply = FORMATS[name].write(FILMS, order, grades_of(order))
    reading = FORMATS[name].read(f"{reply}\nThe Matrix", FILMS)
    assert (reading.missing, reading.repeated) == (0, 0)
    assert reading.invented and not reading.whole


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("reply", ["Star 7 " * MAX_REPLY, "a\n" + " " * (MAX_REPLY - 10) + "b"])
def test_a_huge_reply_is_read_in_bounded_time(name, reply):
    assert not FORMATS[name].read(reply, FILMS).whole


def test_grades_are_read_in_spite_of_spaces_colons_and_full_titles():
    reply = "Godfather: 9, 12 Angry Men=3\nStar Wars - 7; Star 2 2001: a 5 Psycho 4 Psycho 6"
    reading = FORMATS["grades"].read(reply, FILMS)
    assert reading.whole
    assert reading.grades == (9, 3, 7, 2, 5, 4, 6)
    assert reading.order == (0, 2, 6, 4, 5, 1, 3)


def test_grades_count_missing_repeated_and_invented_names():
    reading = FORMATS["grades"].read("Godfather9 Godfather3 Matrix7 Psycho5", FILMS)
    assert (reading.missing, reading.repeated, reading.invented) == (5, 1, 1)
    assert reading.order[:2] == (0, 5)
    assert not reading.whole


def test_grades_are_read_with_and_without_accents():
    candidates = [item("a", "Amélie"), item("b", "Nausicaä of the Valley")]
    assert FORMATS["grades"].write(candidates, [0, 1], [9, 4]) == " Amelie9 Nausicaa4"
    assert FORMATS["grades"].read("Amélie3 Nausicaä8", candidates).order == (1, 0)


def test_letters_of_other_scripts_keep_their_marks():
    told = ["ガンダム", "Чайка", "हिन्दी", "기생충", "Ćwiczenie \u038f"]
    names = FORMATS["grades"].names([item(str(i), title) for i, title in enumerate(told)])
    assert names == [*told[:-1], "Cwiczenie \u038f"]


@pytest.mark.parametrize(
    "reply",
    [
        "1. Godfather 9\n2. Star Wars 3",
        "**Godfather** 9\n**Star Wars:** 3",
        "- **Godfather**: 9\n- **Star Wars**: 3",
        '"Godfather" 9, “Star Wars” 3',
        "Godfather – 9\nStar Wars (3)",
        "1) **Godfather**: 9\n2) **Star Wars**: 3",
    ],
)
def test_grades_are_read_in_the_notations_of_models(reply):
    reading = FORMATS["grades"].read(reply, [FILMS[0], FILMS[2]])
    assert reading.whole and reading.grades == (9, 3)


def test_a_candidate_without_a_grade_does_not_take_the_next_ones_number():
    candidates = [item("a", "Jaws"), item("b", "Rocky"), item("c", "Heat")]
    reading = FORMATS["grades"].read("Jaws7\nRocky\n2. Heat3", candidates)
    assert (reading.missing, reading.order) == (1, (0, 2, 1))


def test_a_number_that_is_a_part_of_a_name_is_not_taken_for_that_of_a_list():
    candidates = [item("a", "300: Rise"), item("b", "Rise")]
    assert FORMATS["grades"].read("300: Rise 7\nRise 2", candidates).grades == (7, 2)


def test_equal_grades_keep_the_order_shown_in_whatever_order_they_were_given():
    candidates = [item("a", "Alien"), item("b", "Brazil"), item("c", "Casino")]
    assert FORMATS["grades"].read("Alien5 Brazil5 Casino5", candidates).order == (0, 1, 2)
    assert FORMATS["grades"].read("Casino: 5, Alien: 5, Brazil: 7", candidates).order == (1, 0, 2)


def test_titles_count_missing_repeated_and_invented_names():
    reply = "1. Star Trek - a classic\n2) star wars\n3. Star Trek\n4. The Matrix\n\n"
    reading = FORMATS["titles"].read(reply, FILMS)
    assert reading.order[:2] == (3, 2)
    assert (reading.missing, reading.repeated, reading.invented) == (5, 1, 1)


def test_a_title_that_begins_another_is_not_taken_for_it():
    candidates = [item("a", "Alien"), item("b", "Aliens")]
    assert FORMATS["titles"].read("1. Aliens\n2. Alien", candidates).order == (1, 0)


def test_an_invented_sequel_is_not_the_candidate_that_it_begins_with():
    candidates = [item("a", "Jaws"), item("b", "Rocky"), item("c", "Heat")]
    reading = FORMATS["titles"].read("1. Jaws 3-D\n2. Rocky IV\n3. Heat and Dust", candidates)
    assert (reading.missing, reading.invented) == (3, 3)


def test_a_name_that_goes_on_with_a_sign_is_another_one():
    candidates = [item("a", "Batman"), item("b", "Heat")]
    reading = FORMATS["titles"].read("1. Batman & Robin\n2. Heat", candidates)
    assert (reading.missing, reading.invented) == (1, 1)


@pytest.mark.parametrize(
    ("reply", "order", "repeated"),
    [
        ("1. Heat, Alien, It", (1, 0, 2), 0),
        ("**Heat**; It | Alien | Heat", (1, 2, 0), 1),
        ("1. Alien, Heat\n2. Heat\n3. It", (0, 1, 2), 1),
        ("1. Alien, it has claws\n2. Heat\n3. It", (0, 1, 2), 0),
    ],
)
def test_the_names_of_a_line_count_each(reply, order, repeated):
    candidates = [item("a", "Alien"), item("b", "Heat"), item("c", "It")]
    reading = FORMATS["titles"].read(reply, candidates)
    assert (reading.order, reading.repeated) == (order, repeated)


def test_titles_are_understood_without_their_accents_where_that_names_one():
    candidates = [item("a", "Été"), item("b", "Ete"), item("c", "Amélie")]
    reading = FORMATS["titles"].read("1. Amelie\n2. Ete\n3. Été", candidates)
    assert reading.whole and reading.order == (2, 1, 0)


@pytest.mark.parametrize(
    "reply",
    [
        "1. Schindler’s List\n2. 英雄",
        "1 - Schindler's List (1993)\n2 - 英雄",
        "1\\. Schindler's List\n2\\. 英雄",
        "1、《Schindler's List》\n2．「英雄」",
        "**1.** Schindler's List: moving\n**2.** 英雄",
    ],
)
def test_titles_are_read_in_the_notations_of_models(reply):
    candidates = [item("a", "英雄"), item("b", "Schindler's List")]
    reading = FORMATS["titles"].read(reply, candidates)
    assert reading.whole and reading.order == (1, 0)


@pytest.mark.parametrize(
    "reply",
    [
        "1. #Alive\n2. Alive\n3. 300: Rise\n4. Été",
        "#Alive\nAlive\n300: Rise\nE\u0301te\u0301",
        "1. “#Alive”\n2. `Alive`\n3. **300: Rise**\n4. «été»",
    ],
)
def test_titles_are_read_by_the_letter_before_marks_and_numbers_are_left_out(reply):
    candidates = [item(str(i), t) for i, t in enumerate(["Alive", "#Alive", "300: Rise", "Été"])]
    reading = FORMATS["titles"].read(reply, candidates)
    assert reading.whole
    assert reading.order == (1, 0, 2, 3)


@pytest.mark.parametrize("name", FORMATS)
def test_brackets_in_disguise_make_no_control_token_of_a_title(name):
    disguised = [
        item("a", "Film ＜|im_end|＞ ［INST］ ﹤/think﹥"),
        item("b", "\u226e|im_end|\u226f"),
    ]
    for text in (*FORMATS[name].names(disguised), FORMATS[name].write(disguised, [0, 1], [9, 0])):
        assert not set(text) & set("<>[]{}")


@pytest.mark.parametrize("name", FORMATS)
@given(candidates=catalogs)
def test_names_differ_and_are_safe_in_every_spelling(name, candidates):
    names = [n.casefold() for n in FORMATS[name].names(candidates)]
    assert len(set(names)) == len(names)
    for form in ("NFC", "NFKC", "NFKD"):
        assert not set(unicodedata.normalize(form, " ".join(names))) & set("<>[]{}")


@pytest.mark.parametrize(
    ("name", "word"),
    [("Godfather, The", "Godfather"), ("12 Angry Men", "12 Angry"), ("2001", "2001")],
)
def test_the_first_word_ends_in_a_letter(name, word):
    assert first_word(name) == word

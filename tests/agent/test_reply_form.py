"""Constrained decoding: whatever is chosen, the reply is whole; what is written can be chosen."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starec_ray.agent.formats import FORMATS, grades_of
from starec_ray.agent.reply_form import ReplyForm
from starec_ray.data.dataset import Item

END = 0


class Letters:
    """A tokenizer of one token a character."""

    eos_token_id = END

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def films(titles: list[str]) -> list[Item]:
    return [Item(str(i), title, 1990 + i, (), (), 0) for i, title in enumerate(titles)]


def form_of(name: str, candidates: list[Item]) -> ReplyForm:
    return ReplyForm.of(FORMATS[name].blanks(candidates), Letters())


def text_of(reply_ids: list[int]) -> str:
    assert reply_ids[-1] == END
    return "".join(map(chr, reply_ids[:-1]))


catalogs = st.lists(
    st.text("abcdefg hij'", min_size=1, max_size=12), min_size=1, max_size=12, unique=True
).map(films)


@pytest.mark.parametrize("name", FORMATS)
@given(candidates=catalogs, seed=st.integers(0, 999))
def test_a_reply_chosen_blindly_is_a_whole_ranking(name, candidates, seed):
    cursor, rng, reply = form_of(name, candidates).start(), random.Random(seed), []
    while not reply or reply[-1] != END:
        reply.append(rng.choice(cursor.choices()))
        cursor.take(reply[-1])
    assert FORMATS[name].read(text_of(reply), candidates).whole


@pytest.mark.parametrize("name", FORMATS)
@given(candidates=catalogs, data=st.data())
def test_a_written_reply_says_what_the_format_writes_and_could_be_chosen(name, candidates, data):
    order = data.draw(st.permutations(range(len(candidates))))
    grades = grades_of(order)
    form = form_of(name, candidates)
    reply = form.write(FORMATS[name].fill(order, grades))
    assert text_of(reply) == FORMATS[name].write(candidates, order, grades)
    assert all(token in choices for token, choices in zip(reply, form.choices(reply), strict=True))


def test_only_grades_are_left_to_choose_in_the_grades_format():
    form = form_of("grades", films(["Alien", "Brazil"]))
    reply = form.write([0, 7, 0, 2])
    free = [chr(t) for t, c in zip(reply, form.choices(reply), strict=True) if len(c) > 1]
    assert text_of(reply) == " Alien7 Brazil2"
    assert free == ["7", "2"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_longest_reply_is_as_long_as_what_is_written(name):
    form = form_of(name, films(["Alien", "Brazil"]))
    assert form.longest == len(form.write(FORMATS[name].fill([1, 0], [9, 4])))


def test_the_longest_reply_takes_the_longest_option_of_each_blank():
    form = ReplyForm((((1,), (2, 3)), ((4,),)), (False, False), 0)
    assert form.longest == 4  # 2, 3, 4 and the end


def test_expected_grades_are_the_means_of_the_grades_by_their_probabilities():
    form = form_of("grades", films(["Alien", "Brazil"]))
    reply = form.write([0, 7, 0, 2])
    certain = {token: 0.0 for token in reply}
    even = {ord(digit): math.log(0.1) for digit in "0123456789"}
    leaning = {
        ord(d): math.log(p) for d, p in zip("0123456789", [0.6, 0.4] + [1e-9] * 8, strict=True)
    }
    steps = [
        even if chr(token) == "7" else leaning if chr(token) == "2" else certain for token in reply
    ]
    assert form.expected_options(reply, steps) == pytest.approx([4.5, 0.4], abs=1e-6)
    # A reply cut short tells of those that it came to.
    assert form.expected_options(reply[:8], steps[:8]) == pytest.approx([4.5], abs=1e-6)


def test_expected_grades_are_among_the_choices_alone():
    form = form_of("grades", films(["Alien"]))
    reply = form.write([0, 7])
    even = {ord(digit): math.log(0.05) for digit in "0123456789"}  # half of it went elsewhere
    steps = [even if chr(token) == "7" else {token: 0.0} for token in reply]
    assert form.expected_options(reply, steps) == pytest.approx([4.5])


def test_options_of_several_tokens_have_no_expectation():
    form = form_of("titles", films(["Alien", "Brazil"]))
    reply = form.write([0, 1, 0, 0])
    assert form.expected_options(reply, [{token: 0.0} for token in reply]) == []


def test_a_title_listed_is_no_choice_any_more():
    form = form_of("titles", films(["Alien", "Aliens", "Brazil"]))
    cursor = form.start()
    for token in map(ord, "1. Alien\n2. "):
        cursor.take(token)
    assert sorted(map(chr, cursor.choices())) == ["A", "B"]
    for token in map(ord, "Alien"):
        cursor.take(token)
    assert list(map(chr, cursor.choices())) == ["s"]


def test_a_token_that_is_no_choice_is_refused():
    with pytest.raises(ValueError, match="can't stand in blank 0"):
        form_of("grades", films(["Alien"])).start().take(ord("x"))


def test_a_form_survives_the_way_to_the_engine():
    form = form_of("titles", films(["Alien", "Brazil"]))
    assert ReplyForm(**form.plain()) == form

"""The grammar that a weak teacher is kept to takes whole replies and no others."""

import itertools

import pytest
import xgrammar

from starec_ray.agent.agent import Agent
from starec_ray.agent.formats import FORMATS, Blank
from starec_ray.agent.prompts import PromptWriter
from starec_ray.agent.tasks import RankTask, ReflectTask, SummarizeTask
from starec_ray.data.dataset import Dataset
from starec_ray.distill.guided import MOST_TOLD_APART, ranking_rules, reply_grammar

COMPILER = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(["a"]), max_threads=1)
THOUGHTS = "<think>The latest were liked a lot.</think>\n"


def takes(grammar: str, text: str) -> bool:
    """Whether the whole text, and not a part of it alone, is of the grammar."""
    matcher = xgrammar.GrammarMatcher(
        COMPILER.compile_grammar(grammar), terminate_without_stop_token=True
    )
    return matcher.accept_string(text) and matcher.is_terminated()


@pytest.fixture(scope="module")
def dataset(films) -> Dataset:
    return Dataset.load(films)


def agent(dataset: Dataset, reply_format: str) -> Agent:
    writer = PromptWriter(FORMATS[reply_format], ("tags",), 1, think_before_ranking=True)
    return Agent(dataset, writer, 5, 4096, constrained=False)


@pytest.mark.parametrize("reply_format", sorted(FORMATS))
def test_a_ranking_is_whole_or_refused(dataset, reply_format):
    asked = agent(dataset, reply_format)
    case = dataset.case(dataset.case_ids("train")[0])
    order = [3, 0, 2, 1, 7, 6, 5, 4]
    ranking = asked.writer.reply_format.write(case.candidates, order, [*range(8)])
    grammar = reply_grammar(asked, RankTask(case.case_id, ""))
    assert takes(grammar, THOUGHTS + ranking)
    assert not asked.read(RankTask(case.case_id, ""), THOUGHTS + ranking)["malformed"]
    assert not takes(grammar, ranking)
    assert not takes(grammar, THOUGHTS + ranking[: len(ranking) // 2])
    assert not takes(grammar, THOUGHTS + ranking + "and more")
    assert not takes(grammar, THOUGHTS + "1. The Film That Never Was\n")


def test_a_name_may_come_once_alone_and_any_order_will_do():
    names = ['Say "Hi"', "Amélie", "Back\\slash"]
    titles = Blank(tuple(f"{name}\n" for name in names), once=True)
    grammar = "\n".join(["root ::= answer", *ranking_rules([titles] * 3)])
    for written in itertools.product(names, repeat=3):
        whole = len(set(written)) == 3
        assert takes(grammar, "".join(f"{name}\n" for name in written)) == whole


def test_of_a_long_list_the_grammar_keeps_the_number_of_lines_and_the_names():
    names = [f"Film {chr(65 + index)}" for index in range(MOST_TOLD_APART + 1)]
    titles = Blank(tuple(f"{name}\n" for name in names), once=True)
    grammar = "\n".join(["root ::= answer", *ranking_rules([titles] * len(names))])
    lines = [f"{name}\n" for name in names]
    assert takes(grammar, "".join(lines)) and takes(grammar, "".join(lines[:1] * len(names)))
    assert not takes(grammar, "".join(lines[1:])) and not takes(
        grammar, "".join(["Film\n", *lines[1:]])
    )


def test_a_summary_follows_thoughts_and_says_what_is_liked(dataset):
    case_id = dataset.case_ids("train")[0]
    ranking = tuple(item.item_id for item in dataset.case(case_id).candidates)
    for task in (SummarizeTask(case_id), ReflectTask(case_id, "", ranking, ranking[0])):
        grammar = reply_grammar(agent(dataset, "titles"), task)
        assert takes(grammar, THOUGHTS + "Likes dark thrillers of the 1990s.")
        assert not takes(grammar, THOUGHTS + "Dark thrillers of the 1990s.")
        assert not takes(grammar, "Likes dark thrillers of the 1990s.")
        assert not takes(grammar, THOUGHTS + "Likes dark thrillers.\nAnd comedies.")

"""Grammars for structured outputs: a weak teacher's replies keep to their form.

A grammar is EBNF as XGrammar reads it, which vLLM's server and engine take as structured output.
"""

import json
from collections.abc import Sequence

from starec_ray.agent.agent import Agent
from starec_ray.agent.formats import Blank
from starec_ray.agent.tasks import RankTask, Task

# Rules grow as 2^n with the names that a ranking of n may give only once: ten take a second to
# compile. In longer lists a name may come twice, and screening tells of it.
MOST_TOLD_APART = 10
THOUGHT = "[a-zA-Z] [^<>\\n]{20,160}"  # characters
SUMMARY = '"Likes " [a-zA-Z0-9] [^<>\\n]{10,160}'


def reply_grammar(agent: Agent, task: Task) -> str:
    """What a whole reply to `task` looks like: thoughts, then a ranking or a summary."""
    if isinstance(task, RankTask):
        candidates = agent.dataset.case(task.case_id).candidates
        rules = ranking_rules(agent.writer.reply_format.blanks(candidates))
    else:
        rules = [f"answer ::= {SUMMARY}"]
    return "\n".join(
        ['root ::= "<think>" thought "</think>\\n" answer', f"thought ::= {THOUGHT}", *rules]
    )


def ranking_rules(blanks: Sequence[Blank]) -> list[str]:
    """The rule "answer" and what it refers to: one for each blank and set of spent options."""
    counted = max((len(blank.options) for blank in blanks if blank.once), default=0)
    tell_apart = counted <= MOST_TOLD_APART
    names: dict[tuple[int, frozenset[int]], str] = {(0, frozenset()): "answer"}
    rules = []
    waiting = list(names)
    while waiting:
        number, spent = state = waiting.pop()
        blank = blanks[number]
        alternatives = []
        for index, option in enumerate(blank.options):
            if blank.once and index in spent:
                continue
            text = json.dumps(option, ensure_ascii=False)
            after = (number + 1, spent | {index} if blank.once and tell_apart else spent)
            if after[0] == len(blanks):
                alternatives.append(text)
                continue
            if after not in names:
                names[after] = f"r{len(names)}"
                waiting.append(after)
            alternatives.append(f"{text} {names[after]}")
        rules.append(f"{names[state]} ::= {' | '.join(alternatives)}")
    return rules

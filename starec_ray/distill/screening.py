"""What makes a trace sound, and what to tell a teacher whose answer isn't."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starec_ray.agent.item_text import folded, one_line
from starec_ray.agent.prompts import Messages
from starec_ray.data.dataset import Case
from starec_ray.training.traces import KEPT

NO_ANSWER = "no answer"
MALFORMED = "malformed"
NO_RATIONALE = "no rationale"
NO_PREFERENCES = "no preference words"
LOW_SCORE = "low score"

MIN_RATIONALE = 3  # words
MAX_NAMED = 5  # items that a fault names
MIN_TITLE = 3  # letters and digits; "M" or "It" in a summary needn't be the film
# Words of the scripts up to Cyrillic, and of the others each letter: not all of them part words.
_WORD = re.compile(r"(?:(?=[\0-\u052f\u1e00-\u1fff])[^\W_])+|[^\W_]")


@dataclass(frozen=True)
class Judgement:
    """A verdict, and the fault as the teacher is told it."""

    verdict: str
    fault: str = ""


def judge_ranking(
    reading: dict[str, Any],
    names: dict[str, str],
    target: str,
    *,
    score: float,
    min_score: float,
) -> Judgement:
    """A ranking's verdict.

    Args:
        reading: what `Agent.read` says of the reply.
        names: candidates' item ids → how the prompt names them.
        target: the item id that the user chose.
        score: NDCG of the ranking, 0 … 1.
        min_score: below it a ranking isn't kept.
    """
    ranking: list[str] = reading["ranking"]
    if reading["malformed"]:
        faults = []
        if missing := ranking[len(ranking) - reading["missing"] :]:
            more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
            listed = "; ".join(names[item_id] for item_id in missing[:MAX_NAMED])
            faults.append(f"these candidates are missing: {listed}{more}")
        if reading["repeated"]:
            faults.append(f"{reading['repeated']} are named more than once")
        if reading["invented"]:
            faults.append(f"{reading['invented']} names or words are no candidates'")
        return Judgement(MALFORMED, f"Your ranking isn't whole: {', '.join(faults)}.")
    if judgement := _without_rationale(reading):
        return judgement
    if score < min_score:
        rank = ranking.index(target) + 1
        ahead = "; ".join(names[item_id] for item_id in ranking[: min(rank - 1, MAX_NAMED)])
        return Judgement(
            LOW_SCORE,
            f"The user chose {names[target]}, which you placed {rank} of {len(ranking)}, behind "
            f"{ahead}. Find what in the history speaks for it.",
        )
    return Judgement(KEPT)


def judge_summary(reading: dict[str, Any], case: Case) -> Judgement:
    """A reflection's or summarisation's verdict by its form alone."""
    if reading["malformed"]:
        return Judgement(MALFORMED, "There was no preference summary behind your thoughts.")
    if judgement := _without_rationale(reading):
        return judgement
    summary = f" {_words(reading['summary'])} "
    named = (f" {word}{end} " in summary for word in preference_words(case) for end in ("", "s"))
    if not any(named):
        return Judgement(
            NO_PREFERENCES,
            "Your summary names nothing that the user could like: no genre, person, period or "
            "title of the history or the candidates.",
        )
    return Judgement(KEPT)


def judge_follow_up(
    ranking: Sequence[str], target: str, *, score: float, min_score: float
) -> Judgement:
    """A reflection's verdict by the ranking that its summary made possible; as `judge_ranking`.

    The fault doesn't name the target: the summary written again would, before that target's case.
    """
    if score >= min_score:
        return Judgement(KEPT)
    rank = list(ranking).index(target) + 1
    return Judgement(
        LOW_SCORE,
        f"With your summary the next prediction placed what the user chose then {rank} of "
        f"{len(ranking)}. Find what else the history says of the user's taste.",
    )


def preference_words(case: Case) -> set[str]:
    """What a preference can be about, as `_words`: tags, people, decades and titles."""
    items = [*(item for item, _ in case.history), *case.candidates]
    titles = {_words(one_line(item.title)) for item in items}
    words = {title for title in titles if len(title.replace(" ", "")) >= MIN_TITLE}
    attributes = {text for item in items for text in (*item.tags, *item.people)}
    words |= {_words(one_line(text)) for text in attributes}
    words |= {f"{item.year // 10 * 10}s" for item in items if item.year}
    return words - {""}


def rethink(messages: Messages, reply: str, fault: str) -> Messages:
    """The conversation that asks for a flawed answer again, its fault named."""
    again = (
        f"{fault} Answer again in full, in the same form. Write it as if you had known all along: "
        "do not mention this correction."
    )
    return [
        *messages,
        {"role": "assistant", "content": reply},
        {"role": "user", "content": again},
    ]


def _words(text: str) -> str:
    """What of a text is letters and digits, in small ones, a space between words: "sci fi"."""
    return " ".join(_WORD.findall(folded(text)))


def _without_rationale(reading: dict[str, Any]) -> Judgement | None:
    if len(reading["rationale"].split()) >= MIN_RATIONALE:
        return None
    return Judgement(NO_RATIONALE, "There was no thought between <think> and </think>.")

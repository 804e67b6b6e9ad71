"""The template teacher: worked answers for the anchor until a reasoning model is attached.

It knows what an attentive reader of the prompt could know (the history, the catalog's
attributes, what is popular) and ranks by likeness to the recent history; it never sees a target
before its own ranking was scored, and is only ever asked about training users.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from starec_ray.agent.formats import TOP_GRADE, grades_of
from starec_ray.agent.item_text import clean, popularity_level
from starec_ray.agent.memory import digest
from starec_ray.agent.tasks import RankTask, ReflectTask
from starec_ray.data.dataset import Case, Dataset, Item

YEARS_TO_FORGET = 6.0  # likeness of two items falls by e for so many years between them
RECENT = 10


class TemplateTeacher:
    """Answers tasks with templates.

    Args:
        dataset: cases of training users.
        popularity_weight: how much an item's popularity level (0 … 9, as a share) counts beside
            its likeness (0 … 1) to the recent history.
    """

    name = "template"

    def __init__(self, dataset: Dataset, popularity_weight: float) -> None:
        self.dataset = dataset
        self.popularity_weight = popularity_weight
        self.most_popular = max((i.popularity for i in dataset.items.values()), default=0)

    def rank(self, task: RankTask) -> dict[str, Any]:
        """The rank trace's own columns: rationale, ranking (item ids), grades (0 … 9)."""
        case = self.dataset.case(task.case_id)
        scores = self._scores(case)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        best = case.candidates[order[0]]
        return {
            "rationale": f"{clean(best.title)} is closest to the latest: {_traits(best)}.",
            "ranking": [case.candidates[index].item_id for index in order],
            "grades": grades_of(order),
        }

    def reflect(self, task: ReflectTask) -> dict[str, Any]:
        """The reflect trace's own columns: rationale, summary (the choice counted in)."""
        case = self.dataset.case(task.case_id)
        chosen, first = self.dataset.items[task.chosen], self.dataset.items[task.predicted[0]]
        if chosen.item_id == first.item_id:
            rationale = f"The prediction was right: {_traits(chosen)} still fits."
        else:
            rationale = (
                f"I put {clean(first.title)} first for {_traits(first)}, but the user chose "
                f"{clean(chosen.title)}: {_traits(chosen)}."
            )
        recent = [*case.history[-RECENT:], (chosen, True)]
        return {"rationale": rationale, "summary": digest(recent)}

    def _scores(self, case: Case) -> list[float]:
        recent = [item for item, liked in case.history if liked][-RECENT:]
        return [
            likeness(candidate, recent)
            + self.popularity_weight
            * popularity_level(candidate.popularity, self.most_popular)
            / TOP_GRADE
            for candidate in case.candidates
        ]


def likeness(item: Item, others: Sequence[Item]) -> float:
    """Mean likeness, 0 … 1: shared tags and people (Jaccard), and closeness in years."""
    if not others:
        return 0.0
    total = 0.0
    for other in others:
        mine, theirs = {*item.tags, *item.people}, {*other.tags, *other.people}
        total += len(mine & theirs) / len(mine | theirs) if mine | theirs else 0.0
        if item.year is not None and other.year is not None:
            total += float(np.exp(-abs(item.year - other.year) / YEARS_TO_FORGET))
    return total / (2 * len(others))


def _traits(item: Item) -> str:
    tags = [clean(tag) for tag in item.tags[:2]]
    return " ".join([*tags, *([f"of {item.year}"] if item.year else [])]) or "of its own kind"

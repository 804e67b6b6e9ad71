"""The template teacher: worked answers for the anchor until a reasoning model is attached.

It knows what an attentive reader of the prompt could know (the history, the catalog's
attributes, what is popular) and ranks by likeness to the recent history; it never sees a target
before its own ranking was scored, and is only ever asked about training users.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_ray.agent.formats import TOP_GRADE
from starec_ray.agent.item_text import clean, popularity_level
from starec_ray.agent.likeness import RECENT, likeness
from starec_ray.agent.memory import digest
from starec_ray.agent.tasks import RankTask, ReflectTask, SummarizeTask
from starec_ray.data.dataset import Case, Dataset, Item

CASES_TO_CALIBRATE = 200


class TemplateTeacher:
    """Answers tasks with templates.

    Grades are absolute, so that a grade says what its item is worth, whatever it stands beside:
    over the candidates of many training cases each is given as often as it occurs as a popularity
    level, where those are shown (an average item's grade is then its level), else equally often.

    Args:
        dataset: cases of training users.
        attributes: of `item_text.ATTRIBUTES`, what the student is shown of an item.
        popularity_weight: how much an item's popularity level (0 … 9, as a share) counts beside
            its likeness (0 … 1) to the recent history.
    """

    name = "template"

    def __init__(
        self, dataset: Dataset, attributes: Sequence[str], popularity_weight: float
    ) -> None:
        self.dataset = dataset
        self.attributes = frozenset(attributes)
        if "likeness" in self.attributes:  # the digit counts them, shown in words or not
            self.attributes |= {"tags", "people"}
        self.popularity_weight = popularity_weight
        self._bounds = self._calibrate()

    def rank(self, task: RankTask) -> dict[str, Any]:
        """The rank trace's own columns: rationale, ranking (item ids), grades (0 … 9)."""
        case = self.dataset.case(task.case_id)
        scores = self._scores(case)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        best = case.candidates[order[0]]
        return {
            "rationale": f"{clean(best.title)} is closest to the latest: {_traits(best)}.",
            "ranking": [case.candidates[index].item_id for index in order],
            "grades": np.searchsorted(self._bounds, scores).tolist(),
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

    def summarize(self, task: SummarizeTask) -> dict[str, Any]:
        """The summarize trace's own columns: rationale, summary (a digest of the history)."""
        history = self.dataset.case(task.case_id).history
        liked = [item for item, was_liked in history if was_liked][-2:]
        latest = " and ".join(f"{clean(item.title)}, {_traits(item)}" for item in liked)
        rationale = f"The latest liked are {latest}." if latest else "Nothing was liked so far."
        return {"rationale": rationale, "summary": digest(history)}

    def _scores(self, case: Case) -> list[float]:
        recent = [item for item, liked in case.history if liked][-RECENT:]
        return [
            likeness(candidate, recent, self.attributes)
            + self.popularity_weight * self._level(candidate) / TOP_GRADE
            for candidate in case.candidates
        ]

    def _level(self, item: Item) -> int:
        return popularity_level(item.popularity, self.dataset.most_popular)

    def _calibrate(self) -> NDArray[np.floating]:
        """The highest score of each grade but the top one: float64 [TOP_GRADE], ascending."""
        sample = self.dataset.case_ids("train")[:CASES_TO_CALIBRATE]
        cases = [self.dataset.case(case_id) for case_id in sample]
        shares = np.arange(1, TOP_GRADE + 1) / (TOP_GRADE + 1)
        if "popularity" in self.attributes:
            levels = [self._level(item) for case in cases for item in case.candidates]
            shares = np.array([np.mean(np.array(levels) <= k) for k in range(TOP_GRADE)])
        scores = [score for case in cases for score in self._scores(case)]
        return np.quantile(scores, shares, method="inverted_cdf")


def _traits(item: Item) -> str:
    tags = [clean(tag) for tag in item.tags[:2]]
    return " ".join([*tags, *([f"of {item.year}"] if item.year else [])]) or "of its own kind"

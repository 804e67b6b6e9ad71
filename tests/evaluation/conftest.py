"""A small world: four users of two rounds, whose next choice has the tag of the one before."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from starec_ray import schemas
from starec_ray.agent.tasks import RankTask, ReflectTask, Task
from starec_ray.data.dataset import Dataset

TAGS = ("Drama", "Horror", "Comedy", "War")
USERS = 4
# Round 0 and round 1 show the same tags; the target of user u has tag u, at place u (0-based).
TARGETS = {f"u{user}/{round}": f"{TAGS[user]}{round}" for user in range(USERS) for round in (0, 1)}


def make_dataset(rounds: int = 2) -> Dataset:
    items = [(f"{tag}{round}", tag, round) for tag in TAGS for round in (0, 1)]
    catalog = pa.Table.from_pylist(
        [
            {
                "item_id": item_id,
                "title": f"{tag} No. {round} [bold]",
                "year": 1990 + round,
                "tags": [tag],
                "people": [],
                "popularity": 10 - TAGS.index(tag) // 2,  # two and two are tied
            }
            for item_id, tag, round in items
        ],
        schema=schemas.CATALOG,
    )
    users = pa.Table.from_pylist(
        [{"user_id": f"u{user}", "profile": []} for user in range(USERS)], schema=schemas.USERS
    )
    cases = pa.Table.from_pylist(
        [
            {
                "case_id": f"u{user}/{round}",
                "user_id": f"u{user}",
                "split": "test",
                "round": round,
                "next_case_id": f"u{user}/{round + 1}" if round + 1 < rounds else None,
                "history": [],
                "history_liked": [],
                "candidates": [f"{tag}{round}" for tag in TAGS],
                "activity": 10 * (user + 1),
            }
            for user in range(USERS)
            for round in range(rounds)
        ],
        schema=schemas.CASES,
    )
    return Dataset(catalog, users, cases, {})


@dataclass
class TagFollower:
    """A scripted model: first what the summary names, then the order shown.

    A reflection writes down the tag of what was chosen. What it is asked is kept in `log`.
    """

    dataset: Dataset
    log: list[object] = field(default_factory=list)

    def load_model(self, folder: str) -> None:
        self.log.append(("load_model", folder))

    def sample(
        self, tasks: list[Task], *, rollouts: int, temperature: float, seed: int
    ) -> pa.Table:
        assert (rollouts, temperature) == (1, 0.0)
        self.log += tasks
        rows = [self._row(index, task) for index, task in enumerate(tasks)]
        return pa.Table.from_pylist(rows, schema=schemas.ROLLOUTS)

    def _row(self, index: int, task: Task) -> dict[str, object]:
        row: dict[str, object] = dict.fromkeys(schemas.ROLLOUTS.names, "")
        row |= dict.fromkeys(("rollout", "missing", "repeated", "invented", "history_shed"), 0)
        row |= {"prompt_ids": [], "reply_ids": [], "logprobs": []}
        row |= {"case_id": task.case_id, "task": index, "weight_version": 0}
        row |= {"malformed": False, "summary_cut": False}
        if isinstance(task, RankTask):
            candidates = self.dataset.case(task.case_id).candidates
            liked_first = sorted(candidates, key=lambda item: item.tags[0] not in task.summary)
            ranking = [item.item_id for item in liked_first]
            return row | {"kind": "rank", "ranking": ranking, "summary": None}
        tag = self.dataset.items[task.chosen].tags[0]
        return row | {"kind": "reflect", "ranking": None, "summary": f"Likes {tag}."}


@dataclass
class TargetKeeper:
    """Scores rankings by the targets that it alone holds; keeps what it revealed in `log`."""

    log: list[object] = field(default_factory=list)

    def score(self, rankings: pa.Table) -> pa.Table:
        rows = []
        for row in rankings.to_pylist():
            chosen = TARGETS[row["case_id"]]
            rank = row["ranking"].index(chosen) + 1
            self.log.append(("revealed", row["case_id"], chosen))
            rows.append(
                {"case_id": row["case_id"], "reward": 0, "target_rank": rank, "chosen": chosen}
            )
        return pa.Table.from_pylist(rows, schema=schemas.SCORES)


class BlankMind:
    """Begins with a summary that names nothing."""

    def initial_summary(self, case_id: str) -> str:
        return "No preferences known yet."


@dataclass
class World:
    dataset: Dataset
    sampler: TagFollower
    scorer: TargetKeeper
    agent: BlankMind
    log: list[object]

    def reflections(self) -> list[ReflectTask]:
        return [entry for entry in self.log if isinstance(entry, ReflectTask)]


@pytest.fixture
def make_world() -> Callable[..., World]:
    def make(rounds: int = 2) -> World:
        log: list[object] = []
        dataset = make_dataset(rounds)
        return World(dataset, TagFollower(dataset, log), TargetKeeper(log), BlankMind(), log)

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()

"""A world small enough for a tiny model: four items, always shown in the same order."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from starec_ray.agent.agent import Agent
from starec_ray.data.dataset import Dataset
from starec_ray.data.store import write_folder
from starec_ray.schemas import CASES, CATALOG, INTERACTIONS, TARGETS, TRACES, USERS

NAMES = ["Alpha", "Bravo", "Charlie", "Delta"]
TARGET = "3"  # every user's choice: what reinforcement has to find out


def write_small_world(folder: Path, users: int = 24) -> Path:
    """A data folder of `users` users with two rounds each; the first half trains."""
    catalog = [
        {"item_id": str(i), "title": name, "year": None, "tags": [], "people": [], "popularity": 9}
        for i, name in enumerate(NAMES)
    ]
    cases, targets = [], []
    for user in range(users):
        for number in range(2):
            cases.append(
                {
                    "case_id": f"u{user}/{number}",
                    "user_id": f"u{user}",
                    "split": ("train", "train", "validation", "test")[user % 4],
                    "round": number,
                    "next_case_id": f"u{user}/1" if number == 0 else None,
                    "history": ["0"],
                    "history_liked": [True],
                    "candidates": [str(i) for i in range(len(NAMES))],
                    "activity": 3,
                }
            )
            targets.append({"case_id": f"u{user}/{number}", "item_id": TARGET})
    people = [{"user_id": f"u{user}", "profile": [("age", "30")]} for user in range(users)]
    tables = {
        "catalog": pa.Table.from_pylist(catalog, schema=CATALOG),
        "users": pa.Table.from_pylist(people, schema=USERS),
        "interactions": INTERACTIONS.empty_table(),
        "cases": pa.Table.from_pylist(cases, schema=CASES),
        "targets": pa.Table.from_pylist(targets, schema=TARGETS),
    }
    write_folder(folder, tables, {"source": "small world"})
    return folder


def write_random_traces(path: Path, agent: Agent, n: int, seed: int = 0) -> Path:
    """Traces that teach the formats and nothing else: three of four rank at random, the others
    reflect and leave the same summary always."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    case_ids = agent.dataset.case_ids("train")
    rows = []
    for number in range(n):
        case_id = case_ids[number % len(case_ids)]
        ranking = [str(i) for i in rng.permutation(len(NAMES))]
        row = {
            "trace_id": str(number),
            "case_id": case_id,
            "teacher": "chance",
            "summary_before": agent.initial_summary(case_id),
            "rationale": "",
        }
        if number % 4:
            grades = rng.integers(0, 10, len(NAMES)).tolist()
            row |= {"kind": "rank", "ranking": ranking, "grades": grades}
        else:
            row |= {"kind": "reflect", "predicted": ranking, "chosen": TARGET}
            row["summary"] = "Likes Alpha."
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=TRACES), path)
    return path


def dataset(folder: Path) -> Dataset:
    return Dataset.load(folder)

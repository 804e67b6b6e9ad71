"""What the two digits of a prompt are worth, and what a run's model makes of them.

Rules that use no model rank the test cases by the popularity level and the likeness level that the
prompt shows, or by sums of them. With --run the grades that each iteration of a constrained run
sampled are explained by the two levels (least squares): grades per popularity level and per
likeness level.

    python benchmarks/prompt_digits.py --data data/ml-1m-short --run runs/ml-1m --json
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from starec_ray.agent.item_text import popularity_level
from starec_ray.agent.likeness import RECENT, likeness_level
from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.evaluation.evaluate import evaluation_case_ids
from starec_ray.metrics import ndcg_at, rank_with_ties
from starec_ray.run_dir import RunDir

RULES = {  # weights of exact popularity, its level, the likeness level
    "popularity, exact counts": (1, 0, 0),
    "popularity level": (0, 1, 0),
    "likeness level": (0, 0, 1),
    "popularity level, likeness level deciding between equals (1 : 0.2)": (0, 1, 0.2),
    "both levels, one to one": (0, 1, 1),
}
GRADE = re.compile(r"(\d)(?= |$)")


def facts(dataset: Dataset, case_id: str, most_popular: int) -> NDArray[np.float64]:
    """Popularity, its level and the likeness level of each candidate: float64 [candidates, 3]."""
    case = dataset.case(case_id)
    liked = [item for item, was_liked in case.history if was_liked][-RECENT:]
    return np.array(
        [
            (
                item.popularity,
                popularity_level(item.popularity, most_popular),
                likeness_level(item, liked),
            )
            for item in case.candidates
        ],
        float,
    )


def score_rules(dataset: Dataset, targets: dict, most_popular: int, seed: int) -> dict[str, float]:
    """NDCG@10 of each rule over the test cases, ties broken at random."""
    rng = np.random.default_rng(seed)
    ranks: dict[str, list[int]] = {rule: [] for rule in RULES}
    for case_id in evaluation_case_ids(dataset):
        of_candidates = facts(dataset, case_id, most_popular)
        target = [item.item_id for item in dataset.case(case_id).candidates].index(targets[case_id])
        for rule, weights in RULES.items():
            ranks[rule].append(rank_with_ties(of_candidates @ np.array(weights), rng)[target])
    return {rule: float(ndcg_at(found, 10).mean()) for rule, found in ranks.items()}


def explain_grades(dataset: Dataset, run: RunDir, most_popular: int) -> list[dict[str, float]]:
    """For each iteration's rollouts the grades per level, by least squares with a constant."""
    found = []
    for file in sorted(run.rollouts.glob("*.parquet")):
        levels, grades = [], []
        for row in pq.read_table(file, columns=["kind", "case_id", "reply"]).to_pylist():
            given = GRADE.findall(row["reply"])
            of_candidates = facts(dataset, row["case_id"], most_popular)
            if row["kind"] == "rank" and len(given) == len(of_candidates):
                levels.append(of_candidates[:, 1:])
                grades.append(np.array(given, float))
        x = np.concatenate(levels)
        x = np.column_stack([x, np.ones(len(x))])
        popularity, likeness, _ = np.linalg.lstsq(x, np.concatenate(grades), rcond=None)[0]
        found.append({"popularity": float(popularity), "likeness": float(likeness)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared data folder")
    parser.add_argument("--run", type=Path, help="the folder of a run on it")
    parser.add_argument("--seed", type=int, default=0, help="of the order of equals")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()

    dataset = Dataset.load(args.data)
    most_popular = max(item.popularity for item in dataset.items.values())
    rules = score_rules(dataset, load_targets(args.data), most_popular, args.seed)
    grades = explain_grades(dataset, RunDir(args.run), most_popular) if args.run else []
    if args.json:
        print(json.dumps({"ndcg@10": rules, "grades_per_level": grades}))
        return
    table = Table("rule", "N@10 ×100")
    for rule, ndcg in rules.items():
        table.add_row(rule, f"{100 * ndcg:.1f}")
    Console().print(table)
    if grades:
        table = Table("iteration", "grades per popularity level", "per likeness level")
        for number, each in enumerate(grades, 1):
            table.add_row(str(number), f"{each['popularity']:.2f}", f"{each['likeness']:.2f}")
        Console().print(table)


if __name__ == "__main__":
    main()

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from starec_ray.data.dataset import Case, Dataset, Item, load_targets
from starec_ray.data.prepare import prepare
from starec_ray.data.sources.synthetic import read, read_films


def test_the_catalog_is_300_films_of_all_eras():
    films = read_films().to_pylist()
    assert len(films) == len({film["title"] for film in films}) == 300
    decades = Counter(film["year"] // 10 * 10 for film in films)
    assert set(decades) == set(range(1930, 2030, 10))
    assert all(decades[decade] >= 15 for decade in range(1930, 2020, 10))
    directors = Counter(person for film in films for person in film["people"])
    assert sum(count >= 3 for count in directors.values()) >= 40
    assert all(film["tags"] and film["people"] for film in films)


def test_the_same_seed_simulates_the_same_users():
    first, again, other = (read(20, seed, lambda message: None) for seed in (1, 1, 2))
    assert first.interactions.equals(again.interactions) and first.users.equals(again.users)
    assert not first.interactions.equals(other.interactions)


def test_simulated_ratings_are_one_to_five_stars():
    ratings = set(read(200, 0, lambda message: None).interactions["rating"].to_pylist())
    assert ratings == {1.0, 2.0, 3.0, 4.0, 5.0}


def ndcg_at_10(dataset: Dataset, targets: dict[str, str], score) -> float:
    """Mean over the test cases; ties count as half."""
    total = 0.0
    case_ids = dataset.case_ids("test", 1)
    for case_id in case_ids:
        case = dataset.case(case_id)
        scores = {item.item_id: score(case, item) for item in case.candidates}
        truth = scores[targets[case_id]]
        ties = sum(value == truth for value in scores.values()) - 1
        rank = 1 + sum(value > truth for value in scores.values()) + ties / 2
        total += 1 / math.log2(rank + 1) if rank <= 10 else 0.0
    return total / len(case_ids)


def taste_match(case: Case, item: Item) -> float:
    """Likeness to the last ten liked films: shared genres, era, director; newer ones count more."""
    liked = [film for film, liked in case.history if liked][-10:]
    score = 0.0
    for age, film in enumerate(reversed(liked)):
        genres = len(set(item.tags) & set(film.tags)) / len(set(item.tags) | set(film.tags))
        assert item.year is not None and film.year is not None
        era = math.exp(-(((item.year - film.year) / 12) ** 2) / 2)
        director = bool(set(item.people) & set(film.people))
        score += 0.9**age * (2 * genres + era + 1.5 * director)
    return score


def test_taste_predicts_the_next_liked_film_better_than_popularity_and_that_than_chance(
    synthetic_folder: Path, synthetic_dataset: Dataset
):
    targets = load_targets(synthetic_folder)
    rng = np.random.default_rng(0)
    chance = ndcg_at_10(synthetic_dataset, targets, lambda case, item: rng.random())
    popularity = ndcg_at_10(synthetic_dataset, targets, lambda case, item: item.popularity)
    taste = ndcg_at_10(synthetic_dataset, targets, taste_match)
    print(f"N@10: chance {chance:.3f}, popularity {popularity:.3f}, taste {taste:.3f}")
    assert popularity > chance + 0.1
    assert taste > popularity + 0.2


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    few: dict[str, Any] = {
        "simulated_users": 30,
        "train_users": 10,
        "validation_users": 5,
        "test_users": 5,
    }
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        prepare("synthetic", tmp_path / name, seed=seed, **few)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    contents = {
        folder: [(tmp_path / folder / name).read_bytes() for name in names] for folder in "abc"
    }
    assert contents["a"] == contents["b"]
    assert contents["a"] != contents["c"]
    cases = pq.read_table(tmp_path / "a" / "cases.parquet")
    assert "item_id" not in cases.column_names

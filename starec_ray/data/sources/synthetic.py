"""The embedded source: 300 real films, and simulated users with drifting tastes.

Nothing but the films' facts (films.csv) is real. A simulated user has, at each step, two genres
in focus and an era; the focus changes now and then, the era wanders, and a liked film draws its
director's other films along. Films are picked by taste times a skewed popularity, and rated by
taste with noise. So the recent liked history tells the most about the next liked film,
popularity something, and older history less and less.
"""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa

from starec_ray.data.raw import RAW_CATALOG, RAW_INTERACTIONS, RawData, Say, users_table

FILMS = Path(__file__).parents[1] / "films.csv"
# A user watches between this many films and two fewer than that many.
_LENGTHS = (14, 32)
_GENRES_IN_FOCUS = 2
_REFOCUS = 0.06  # chance a step that one genre in focus is exchanged
_ERA_DRIFT = 2.0  # years a step, standard deviation
_ERA_WIDTH = 12.0  # years
_DIRECTOR_MEMORY = 0.7  # how much of a director's pull is left after a step
_TASTE_PULL = 1.8  # of one standard deviation of taste on the log odds of watching
_POPULARITY_SKEW = 1.1  # exponent of the Zipf-like popularity
_RATING_NOISE = 0.6  # stars
_AGES = ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56 or over")


def read_films() -> pa.Table:
    """The embedded catalog, schema RAW_CATALOG, oldest film first."""
    with FILMS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return pa.table(
        {
            "item_id": [str(number) for number in range(1, len(rows) + 1)],
            "title": [row["title"] for row in rows],
            "year": [int(row["year"]) for row in rows],
            "tags": [row["genres"].split("|") for row in rows],
            "people": [row["director"].split("|") for row in rows],
        },
        schema=RAW_CATALOG,
    )


def read(users: int, seed: int, say: Say) -> RawData:
    """Simulate so many users. The same seed gives the same data."""
    say(f"simulating {users} users")
    films = read_films()
    rng = np.random.default_rng(seed)
    era_U = rng.uniform(1935, 2015, users)
    lengths_U = rng.integers(*_LENGTHS, size=users, endpoint=True)
    watched_UT, rating_UT = _simulate(films, era_U, int(lengths_U.max()), rng)

    seen_UT = np.arange(watched_UT.shape[1]) < lengths_U[:, None]
    user_U = [f"user-{number:04d}" for number in range(1, users + 1)]
    # First films between 2015 and 2020, then one every few days.
    start_U = rng.integers(1_420_070_400, 1_577_836_800, users)
    gaps_UT = rng.integers(3_600, 6 * 86_400, watched_UT.shape)
    time_UT = start_U[:, None] + np.cumsum(gaps_UT, axis=1)
    item_ids = films.column("item_id").combine_chunks()
    interactions = pa.table(
        [
            pa.array(user_U).take(pa.array(np.repeat(np.arange(users), lengths_U))),
            item_ids.take(pa.array(watched_UT[seen_UT])),
            pa.array(rating_UT[seen_UT], pa.float32()),
            pa.array(time_UT[seen_UT], pa.float64()),
        ],
        schema=RAW_INTERACTIONS,
    )
    # Whoever loves old films is older, give or take.
    age_U = (2025 - era_U) / 90 * len(_AGES) + rng.normal(0, 1, users)
    ages = np.clip(age_U.astype(int), 0, len(_AGES) - 1)
    profiles = {user: {"age": _AGES[age]} for user, age in zip(user_U, ages, strict=True)}
    return RawData("synthetic", films, users_table(profiles), interactions, inputs=(FILMS,))


def _simulate(
    films: pa.Table, era_U: np.ndarray, steps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the films watched, int64 [users, steps], and their ratings 1 … 5, float [same]."""
    users = len(era_U)
    genres_FG = _memberships(films.column("tags").to_pylist())
    same_director_FF = _shared(films.column("people").to_pylist())
    year_F = films.column("year").to_numpy().astype(float)
    # A film's genres count the more, the rarer they are: "Drama" says little.
    rarity_G = -np.log(genres_FG.mean(axis=0))
    weight_FG = genres_FG * rarity_G
    rank_F = rng.permutation(len(year_F))
    log_popularity_F = -_POPULARITY_SKEW * np.log(rank_F + 8.0)

    genre_count = genres_FG.shape[1]
    focus_UG = np.argsort(rng.random((users, genre_count)), axis=1)[:, :_GENRES_IN_FOCUS]
    director_UF = np.zeros((users, len(year_F)))
    unseen_UF = np.ones((users, len(year_F)), dtype=bool)
    everyone = np.arange(users)
    watched, ratings = [], []
    for _ in range(steps):
        changed = np.flatnonzero(rng.random(users) < _REFOCUS)
        slot = rng.integers(_GENRES_IN_FOCUS, size=len(changed))
        focus_UG[changed, slot] = rng.integers(genre_count, size=len(changed))
        era_U = np.clip(era_U + rng.normal(0, _ERA_DRIFT, users), 1930, 2020)

        taste_UF = weight_FG.T[focus_UG].sum(axis=1)
        taste_UF += 2.5 * np.exp(-(((year_F - era_U[:, None]) / _ERA_WIDTH) ** 2) / 2)
        taste_UF += 2.0 * director_UF
        taste_UF -= taste_UF.mean(axis=1, keepdims=True)
        taste_UF /= taste_UF.std(axis=1, keepdims=True)
        log_odds_UF = np.where(unseen_UF, _TASTE_PULL * taste_UF + log_popularity_F, -np.inf)
        choice_U = np.argmax(log_odds_UF + rng.gumbel(size=log_odds_UF.shape), axis=1)

        stars_U = 2.2 + taste_UF[everyone, choice_U] + rng.normal(0, _RATING_NOISE, users)
        stars_U = np.clip(np.rint(stars_U), 1, 5)
        watched.append(choice_U)
        ratings.append(stars_U)
        unseen_UF[everyone, choice_U] = False
        director_UF *= _DIRECTOR_MEMORY
        director_UF += same_director_FF[choice_U] * (stars_U > 3)[:, None]
    return np.stack(watched, axis=1), np.stack(ratings, axis=1)


def _memberships(lists: list[list[str]]) -> np.ndarray:
    """Which names each row's list holds: float [rows, names], names sorted."""
    names = {name: column for column, name in enumerate(sorted({n for row in lists for n in row}))}
    matrix = np.zeros((len(lists), len(names)))
    for row, members in enumerate(lists):
        matrix[row, [names[member] for member in members]] = 1.0
    return matrix


def _shared(lists: list[list[str]]) -> np.ndarray:
    """1.0 where two rows' lists share a name: float [rows, rows]."""
    members = _memberships(lists)
    return np.minimum(members @ members.T, 1.0)

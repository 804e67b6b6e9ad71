"""MovieLens 1M (`::`-separated .dat files) and 100K (`u.*` files), both in latin-1.

F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from starec_ray.data.raw import RAW_CATALOG, RAW_INTERACTIONS, RawData, Say, users_table
from starec_ray.data.text_tables import INTEGER, Rows, need_file, read_lines, split_rows
from starec_ray.errors import DataError

_ENCODING = "latin-1"
_GENDERS = {"M": "male", "F": "female"}
_AGES = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56 or over",
}
# "other" and "none" say nothing, so they are left out of the profile.
_OCCUPATIONS = {
    "0": "",
    "1": "academic or educator",
    "2": "artist",
    "3": "clerical or admin worker",
    "4": "college or graduate student",
    "5": "customer service worker",
    "6": "doctor or health care worker",
    "7": "executive or manager",
    "8": "farmer",
    "9": "homemaker",
    "10": "K-12 student",
    "11": "lawyer",
    "12": "programmer",
    "13": "retired",
    "14": "sales or marketing worker",
    "15": "scientist",
    "16": "self-employed",
    "17": "technician or engineer",
    "18": "tradesman or craftsman",
    "19": "unemployed",
    "20": "writer",
}
_NO_OCCUPATION = ("other", "none")
_NO_GENRE = ("unknown", "(no genres listed)")
_RATING_COLUMNS = ["UserID", "MovieID", "Rating", "Timestamp"]
# The last year in brackets; behind it may stand more in brackets: "(1995) (V)", "(1996/I)".
_TITLE = re.compile(
    r"^(?P<title>.*\S)\s*\((?P<year>(?:18|19|20)\d\d)(?:/[IVXL]+)?\)(?:\s*\([^()]*\))*$"
)
# "Matrix, The" and, for films with a second title, "City of Lost Children, The (Cité …, La)".
_ARTICLES = (
    "The|A|An|Le|La|Les|L'|Un|Une|Il|Lo|I|Gli|El|Los|Las|Der|Die|Das|Ein|Eine|Det|Den|De|En|O|Os"
)
_LATE_ARTICLE = re.compile(rf"^(?P<rest>.+), (?P<article>{_ARTICLES})$")
_SECOND_TITLE = re.compile(r"^(?P<first>[^(]+?)\s*\(.*\)$")


def split_title(published: str) -> tuple[str, int | None]:
    """ "Matrix, The (1999)" → ("The Matrix", 1999). A second title in brackets is left out."""
    found = _TITLE.match(published)
    title, year = (found["title"], int(found["year"])) if found else (published, None)
    if second := _SECOND_TITLE.match(title):
        title = second["first"]
    if late := _LATE_ARTICLE.match(title):
        space = "" if late["article"].endswith("'") else " "
        title = f"{late['article']}{space}{late['rest']}"
    return title, year


def read_1m(folder: Path, skip_bad_rows: bool, say: Say) -> RawData:
    """users.dat, movies.dat and ratings.dat, as published."""

    def rows(name: str, columns: list[str]) -> Rows:
        return _read(folder / name, "::", columns, skip_bad_rows, say)

    movies = rows("movies.dat", ["MovieID", "Title", "Genres"])
    _check_movies(movies)
    users = rows("users.dat", ["UserID", "Gender", "Age", "Occupation", "Zip"])
    _check_ids(users, "UserID")
    _require_in(users, "Gender", _GENDERS)
    _require_in(users, "Age", _AGES)
    _require_in(users, "Occupation", _OCCUPATIONS)
    ratings = rows("ratings.dat", _RATING_COLUMNS)
    return RawData(
        "movielens-1m",
        _catalog(movies, pc.split_pattern(movies["Genres"], "|").to_pylist()),
        _users(users, _AGES.__getitem__, _OCCUPATIONS.__getitem__),
        _interactions(ratings),
        inputs=_paths(movies, users, ratings),
        skipped_rows=_skipped(movies, users, ratings),
    )


def read_100k(folder: Path, skip_bad_rows: bool, say: Say) -> RawData:
    """u.genre, u.item, u.user and u.data, as published."""

    def rows(name: str, separator: str, columns: list[str]) -> Rows:
        return _read(folder / name, separator, columns, skip_bad_rows, say)

    genres = rows("u.genre", "|", ["Genre", "Number"])
    genres.bad.close()
    names: list[str] = genres["Genre"].to_pylist()
    if genres["Number"].to_pylist() != [str(number) for number in range(len(names))]:
        raise DataError(f"{folder / 'u.genre'}: the genres are not numbered 0, 1, 2, …")
    movies = rows("u.item", "|", ["MovieID", "Title", "Released", "Video", "URL", *names])
    _check_movies(movies)
    flags = zip(*(movies[name].to_pylist() for name in names), strict=True)
    tags = [[name for name, flag in zip(names, row, strict=True) if flag == "1"] for row in flags]
    users = rows("u.user", "|", ["UserID", "Age", "Gender", "Occupation", "Zip"])
    _check_ids(users, "UserID")
    _require_in(users, "Gender", _GENDERS)
    users.require_match("Age", r"^[0-9]{1,3}$", "an age in years")
    ratings = rows("u.data", "\t", _RATING_COLUMNS)
    return RawData(
        "movielens-100k",
        _catalog(movies, tags),
        _users(users, _age_range, lambda word: "" if word in _NO_OCCUPATION else word),
        _interactions(ratings),
        inputs=_paths(genres, movies, users, ratings),
        skipped_rows=_skipped(movies, users, ratings),
    )


def _read(path: Path, separator: str, columns: list[str], skip: bool, say: Say) -> Rows:
    say(f"reading {path.name}")
    lines = read_lines(need_file(path), _ENCODING)
    return split_rows(path, lines, separator, columns, skip_bad_rows=skip)


def _check_ids(rows: Rows, name: str) -> None:
    rows.require_match(name, INTEGER, f"a whole number as {name}")
    rows.require_unique(name, f"a {name} that no earlier line has")


def _check_movies(movies: Rows) -> None:
    _check_ids(movies, "MovieID")
    movies.require("Title", pc.not_equal(movies["Title"], ""), "a Title")


def _require_in(rows: Rows, name: str, words: dict[str, str]) -> None:
    known = pc.is_in(rows[name], value_set=pa.array(list(words)))
    rows.require(name, known, f"one of {', '.join(words)} as {name}")


def _catalog(movies: Rows, tags: list[list[str]]) -> pa.Table:
    movies.bad.close()
    titles = [split_title(title) for title in movies["Title"].to_pylist()]
    return pa.table(
        {
            "item_id": movies["MovieID"],
            "title": [title for title, _ in titles],
            "year": [year for _, year in titles],
            "tags": [[tag for tag in row if tag not in _NO_GENRE] for row in tags],
            "people": [[] for _ in titles],
        },
        schema=RAW_CATALOG,
    )


def _users(users: Rows, age: Callable[[str], str], occupation: Callable[[str], str]) -> pa.Table:
    users.bad.close()
    columns = {
        "gender": [_GENDERS[letter] for letter in users["Gender"].to_pylist()],
        "age": [age(value) for value in users["Age"].to_pylist()],
        "occupation": [occupation(value) for value in users["Occupation"].to_pylist()],
    }
    profiles = [
        {name: value for name, value in zip(columns, row, strict=True) if value}
        for row in zip(*columns.values(), strict=True)
    ]
    return users_table(dict(zip(users["UserID"].to_pylist(), profiles, strict=True)))


def _interactions(ratings: Rows) -> pa.Table:
    ratings.require_match("UserID", INTEGER, "a whole number as UserID")
    ratings.require_match("MovieID", INTEGER, "a whole number as MovieID")
    ratings.require_match("Rating", r"^([1-4](\.[05])?|5(\.0)?|0\.5)$", "a Rating from 0.5 to 5")
    ratings.require_match("Timestamp", r"^-?[0-9]{1,15}$", "whole seconds as Timestamp")
    ratings.bad.close()
    return pa.table(
        [
            ratings["UserID"],
            ratings["MovieID"],
            ratings["Rating"].cast(pa.float32()),
            ratings["Timestamp"].cast(pa.float64()),
        ],
        schema=RAW_INTERACTIONS,
    )


def _paths(*files: Rows) -> tuple[Path, ...]:
    return tuple(rows.bad.file for rows in files)


def _skipped(*files: Rows) -> dict[str, int]:
    return {rows.bad.file.name: rows.bad.count for rows in files if rows.bad.count}


def _age_range(years: str) -> str:
    """The MovieLens 1M range that an age in years falls in."""
    return next(
        name for low, name in reversed(_AGES.items()) if int(years) >= int(low) or low == "1"
    )

from pathlib import Path

import pytest

from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.data.prepare import prepare
from starec_ray.data.sources.movielens import read_1m, read_100k, split_title
from starec_ray.errors import DataError

MOVIES = (
    "1::Toy Story (1995)::Animation|Children's|Comedy\n"
    "2::Matrix, The (1999)::Action|Sci-Fi\n"
    "3::City of Lost Children, The (Cité des enfants perdus, La) (1995)::Adventure\n"
    "4::Heat (1995)::Action\n"
    "5::M (1931)::Crime\n"
).encode("latin-1")
USERS = "1::F::1::10::48067\n2::M::56::0::70072\n"
RATINGS = "1::1::5::30\n1::2::4::10\n1::4::2::20\n2::3::5::7\n2::1::4::7\n"
GOOD = {"movies.dat": MOVIES, "users.dat": USERS, "ratings.dat": RATINGS}


@pytest.mark.parametrize(
    ("published", "title", "year"),
    [
        ("Matrix, The (1999)", "The Matrix", 1999),
        ("Toy Story (1995)", "Toy Story", 1995),
        ("City of Lost Children, The (Cité des enfants perdus, La) (1995)",
         "The City of Lost Children", 1995),
        ("Amour, L' (1972)", "L'Amour", 1972),
        ("Cry, the Beloved Country (1995)", "Cry, the Beloved Country", 1995),
        ("1984 (1984)", "1984", 1984),
        ("unknown", "unknown", None),
        ("Land Before Time III: The Time of the Great Giving (1995) (V)",
         "Land Before Time III: The Time of the Great Giving", 1995),
        ("Matrix, The (Mátrix) (1999) (TV) (Director's Cut)", "The Matrix", 1999),
        ("Heat (1996/I)", "Heat", 1996),
        ("Foo (1995) (1996)", "Foo", 1996),
        ("(1995)", "(1995)", None),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", 2009),
    ],
)  # fmt: skip
def test_titles_lose_the_year_and_regain_their_article(published, title, year):
    assert split_title(published) == (title, year)


def test_movielens_1m_becomes_items_profiles_and_cases(files, tmp_path, small_protocol):
    small_protocol["negatives"] = 1
    prepare("movielens-1m", tmp_path / "out", folder=files(GOOD), **small_protocol)
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.items["2"].title == "The Matrix"
    assert dataset.items["2"].tags == ("Action", "Sci-Fi")
    assert set(dataset.items) == {"1", "2", "3", "4"}  # nobody rated 5
    case = dataset.case("1/0")
    assert case.profile == {"gender": "female", "age": "under 18", "occupation": "K-12 student"}
    assert [(item.item_id, liked) for item, liked in case.history] == [("2", True), ("4", False)]
    assert load_targets(tmp_path / "out") == {"1/0": "1", "2/0": "1"}
    # "other or not specified" is no fact about a person.
    assert dataset.case("2/0").profile == {"gender": "male", "age": "56 or over"}


def test_ties_in_time_keep_the_file_order(files, tmp_path, small_protocol):
    small_protocol["negatives"] = 1
    swapped = GOOD | {"ratings.dat": "1::1::5::30\n1::2::4::10\n2::1::4::7\n2::3::5::7\n"}
    prepare("movielens-1m", tmp_path / "out", folder=files(swapped), **small_protocol)
    assert load_targets(tmp_path / "out")["2/0"] == "3"


def test_movielens_100k_layout(files, tmp_path, small_protocol):
    genres = ["unknown", "Action", "Drama"]
    folder = files(
        {
            "u.genre": "".join(f"{name}|{n}\n" for n, name in enumerate(genres)) + "\n",
            "u.item": "1|Usual Suspects, The (1995)|14-Aug-1995||http://x|0|1|1\n"
            "2|unknown||||1|0|0\n3|Heat (1995)|||http://x|0|1|0\n4|Fargo (1996)||||0|0|1\n",
            "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
            "u.data": "1\t2\t4\t1\n1\t1\t5\t2\n2\t3\t4\t1\n2\t4\t5\t2\n",
        }
    )
    prepare("movielens-100k", tmp_path / "out", folder=folder, **small_protocol)
    dataset = Dataset.load(tmp_path / "out")
    first = dataset.items["1"]
    assert (first.title, first.year, first.tags) == (
        "The Usual Suspects",
        1995,
        ("Action", "Drama"),
    )
    assert dataset.items["2"].tags == () and dataset.items["2"].year is None
    assert dataset.case("1/0").profile == {
        "gender": "male",
        "age": "18-24",
        "occupation": "technician",
    }
    assert dataset.case("2/0").profile == {"gender": "female", "age": "50-55"}


GENRES = "unknown|0\nAction|1\n"
FILMS_100K = "1|Heat (1995)|||http://x|0|1\n2|Fargo (1996)|||http://x|0|1\n"


def hundred_k(**changes: str) -> dict[str, str]:
    texts = {
        "genre": GENRES,
        "item": FILMS_100K,
        "user": "1|24|M|technician|85711\n",
        "data": "1\t1\t4\t1\n1\t2\t5\t2\n",
    }
    return {f"u.{name}": text for name, text in (texts | changes).items()}


def test_an_age_in_years_is_told_as_the_range_that_holds_it(files):
    years = {0: "under 18", 17: "under 18", 18: "18-24", 24: "18-24", 25: "25-34", 55: "50-55"}
    years |= {56: "56 or over", 99: "56 or over"}
    users = "".join(f"{n}|{age}|M|other|1\n" for n, age in enumerate(years))
    raw = read_100k(files(hundred_k(user=users)), False, lambda message: None)
    profiles = map(dict, raw.users["profile"].to_pylist())
    assert [profile["age"] for profile in profiles] == list(years.values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"genre": "unknown|1\nAction|0\n"}, "the genres are not numbered 0, 1, 2"),
        ({"user": "1|24|X|other|1\n"}, "expected one of M, F as Gender, found 'X'"),
        ({"data": "1\t1\t5.5\t1\n"}, "a Rating from 0.5 to 5, found '5.5'"),
        ({"user": "1|old|M|other|1\n"}, "expected an age in years, found 'old'"),
    ],
)
def test_what_is_wrong_in_movielens_100k_is_named(files, changes, expected):
    with pytest.raises(DataError) as raised:
        read_100k(files(hundred_k(**changes)), False, lambda message: None)
    assert expected in str(raised.value)


def test_bad_rows_are_all_counted_the_first_five_shown_and_nothing_is_written(files, tmp_path):
    bad = "1::1::5::30\n1::1::5\n1::one::5::30\n\n1::2::9::30\n1::2::3::noon\n" * 4
    folder = files(GOOD | {"ratings.dat": bad})
    out = tmp_path / "out"
    with pytest.raises(DataError) as raised:
        prepare("movielens-1m", out, folder=folder)
    message = str(raised.value)
    assert f"{folder / 'ratings.dat'}: 16 bad rows, the first 5:" in message
    assert "line 2: expected 4 fields (UserID::MovieID::Rating::Timestamp)" in message
    assert "found '1::1::5'" in message
    assert "line 3: expected a whole number as MovieID, found 'one'" in message
    assert "line 5: expected a Rating from 0.5 to 5, found '9'" in message
    assert "line 6: expected whole seconds as Timestamp, found 'noon'" in message
    assert message.count("  line ") == 5
    assert "--skip-bad-rows" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_five_bad_rows_are_all_shown(files, tmp_path):
    folder = files(GOOD | {"ratings.dat": "bad\n" * 5})
    with pytest.raises(DataError, match=r"ratings\.dat: 5 bad rows:\n") as raised:
        prepare("movielens-1m", tmp_path / "out", folder=folder)
    assert "the first" not in str(raised.value)


def test_skipped_bad_rows_are_counted_in_the_manifest(files, tmp_path, small_protocol):
    small_protocol["negatives"] = 1
    folder = files(
        GOOD | {"ratings.dat": RATINGS + "oops\n", "users.dat": USERS + "3::X::1::1::1\n"}
    )
    out = tmp_path / "out"
    prepare("movielens-1m", out, folder=folder, skip_bad_rows=True, **small_protocol)
    assert Dataset.load(out).manifest["counts"]["skipped_bad_rows"] == {
        "users.dat": 1,
        "ratings.dat": 1,
    }


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("users.dat", "1::F::2::10::1\n", "line 1: expected one of 1, 18, 25"),
        ("users.dat", "1::X::1::10::1\n", "expected one of M, F as Gender, found 'X'"),
        ("users.dat", USERS + USERS, "line 3: expected a UserID that no earlier line has"),
        ("movies.dat", "x::Heat (1995)::Crime\n", "expected a whole number as MovieID"),
        ("movies.dat", "1::::Crime\n", "line 1: expected a Title, found ''"),
    ],
)
def test_bad_users_and_movies_are_named(files, name, text, expected):
    with pytest.raises(DataError, match="bad row") as raised:
        read_1m(files(GOOD | {name: text}), False, lambda message: None)
    assert expected in str(raised.value)


def test_a_missing_file_is_named(files):
    folder: Path = files({"movies.dat": MOVIES})
    with pytest.raises(DataError, match=r"users\.dat does not exist"):
        read_1m(folder, False, lambda message: None)


def test_a_file_with_a_byte_order_mark_is_in_utf_8(files):
    movies = MOVIES.decode("latin-1") + "6::Amélie (2001)::Comedy\n"
    marked = {name: text.encode("utf-8-sig") for name, text in (
        ("movies.dat", movies), ("users.dat", USERS), ("ratings.dat", RATINGS),
    )}  # fmt: skip
    raw = read_1m(files(marked), False, lambda message: None)
    assert raw.catalog["title"].to_pylist()[-1] == "Amélie"
    assert raw.users.num_rows == 2 and raw.interactions.num_rows == 5


def test_a_file_that_is_utf_8_throughout_is_read_as_such(files):
    movies = MOVIES.decode("latin-1") + "6::Amélie (2001)::Comedy\n"
    for encoding in ("utf-8", "latin-1"):
        folder = files(GOOD | {"movies.dat": movies.encode(encoding)})
        raw = read_1m(folder, False, lambda message: None)
        assert raw.catalog["title"].to_pylist()[-1] == "Amélie"


def test_windows_line_ends_are_read(files):
    folder = files(GOOD | {"ratings.dat": RATINGS.replace("\n", "\r\n")})
    assert read_1m(folder, False, lambda message: None).interactions.num_rows == 5

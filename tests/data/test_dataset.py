import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.errors import DataError


@pytest.fixture
def folder(synthetic_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(synthetic_folder, tmp_path / "copy"))


def spoil(folder: Path, name: str, change) -> None:
    path = folder / f"{name}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def test_cases_can_be_read_where_targets_and_interactions_are_not(folder, synthetic_dataset):
    (folder / "targets.parquet").unlink()
    (folder / "interactions.parquet").unlink()
    dataset = Dataset.load(folder)
    case_id = dataset.case_ids("test", 1)[0]
    assert dataset.case(case_id) == synthetic_dataset.case(case_id)


def test_a_case_reads_as_the_tables_say(synthetic_folder, synthetic_dataset):
    rows = pq.read_table(synthetic_folder / "cases.parquet").to_pylist()
    users = dict(
        zip(*pq.read_table(synthetic_folder / "users.parquet").to_pydict().values(), strict=True)
    )
    for row in rows[::50]:
        case = synthetic_dataset.case(row["case_id"])
        assert [item.item_id for item, _ in case.history] == row["history"]
        assert [liked for _, liked in case.history] == row["history_liked"]
        assert [item.item_id for item in case.candidates] == row["candidates"]
        assert case.profile == dict(users[row["user_id"]])
        assert (case.split, case.round, case.next_case_id, case.activity) == (
            row["split"], row["round"], row["next_case_id"], row["activity"],
        )  # fmt: skip


def test_case_ids_keep_the_folders_order(synthetic_folder, synthetic_dataset):
    rows = pq.read_table(synthetic_folder / "cases.parquet").to_pylist()
    expected = [row["case_id"] for row in rows if row["split"] == "train"]
    assert synthetic_dataset.case_ids("train") == expected
    first = synthetic_dataset.case_ids("train", 0)
    assert len(first) == 400 and all(case_id.endswith("/0") for case_id in first)
    assert [synthetic_dataset.case(i).next_case_id for i in first] == (
        synthetic_dataset.case_ids("train", 1)
    )
    assert synthetic_dataset.case_ids("elsewhere") == []


def test_targets_are_candidates_of_their_cases(synthetic_folder, synthetic_dataset):
    for case_id, target in load_targets(synthetic_folder).items():
        assert target in {item.item_id for item in synthetic_dataset.case(case_id).candidates}


def test_an_unknown_case_is_an_error(synthetic_dataset):
    with pytest.raises(DataError, match="there is no case 'nobody/0'"):
        synthetic_dataset.case("nobody/0")


def test_a_missing_folder_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="starec data prepare"):
        Dataset.load(tmp_path / "nowhere")


def test_another_schema_version_is_refused(folder):
    (folder / "manifest.json").write_text('{"schema_version": 0}')
    with pytest.raises(DataError, match="schema version 0, this program reads 1"):
        Dataset.load(folder)


def with_first_list(table: pa.Table, name: str, value: list) -> pa.Table:
    rows = table.to_pylist()
    rows[0][name] = value
    return pa.Table.from_pylist(rows, schema=table.schema)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cases", lambda t: t.drop(["history"]), "no column 'history'"),
        (
            "cases",
            lambda t: t.set_column(7, "candidates", t["case_id"]),
            "column 'candidates' is string, not list",
        ),
        (
            "cases",
            lambda t: with_first_list(t, "candidates", ["gone"]),
            "an item in candidates is not in the catalog table: 'gone'",
        ),
        (
            "cases",
            lambda t: with_first_list(t, "history", ["gone"]),
            "an item in history is not in the catalog table: 'gone'",
        ),
        (
            "cases",
            lambda t: with_first_list(t, "history_liked", []),
            "history and history_liked differ in length",
        ),
        ("users", lambda t: t.slice(500), "a user id is not in the users table"),
        (
            "catalog",
            lambda t: pa.concat_tables([t, t.slice(0, 1)]),
            "catalog: item_id '1' is there more than once",
        ),
        (
            "users",
            lambda t: pa.concat_tables([t, t.slice(0, 1)]),
            "users: user_id '.*' is there more than once",
        ),
        (
            "cases",
            lambda t: pa.concat_tables([t, t.slice(0, 1)]),
            "cases: case_id '.*' is there more than once",
        ),
        (
            "catalog",
            lambda t: t.set_column(
                5, "popularity", pc.if_else(pc.greater(t["popularity"], 50), t["popularity"], None)
            ),
            "'popularity' has .* nulls",
        ),
    ],
)
def test_a_spoiled_table_is_named(folder, name, change, message):
    spoil(folder, name, change)
    with pytest.raises(DataError, match=message):
        Dataset.load(folder)


def test_a_file_that_is_not_parquet_is_named(folder):
    (folder / "users.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"users\.parquet can't be read as Parquet"):
        Dataset.load(folder)


def test_tables_by_another_writer_are_welcome(folder):
    """All columns nullable, one more column, several row groups: the content is what counts."""

    def rewrite(table: pa.Table) -> pa.Table:
        nullable = pa.schema([field.with_nullable(True) for field in table.schema])
        return table.cast(nullable).append_column("note", pa.nulls(table.num_rows, pa.string()))

    for name in ("catalog", "users", "cases"):
        table = rewrite(pq.read_table(folder / f"{name}.parquet"))
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=100)
    assert Dataset.load(folder).case_ids("test", 1)

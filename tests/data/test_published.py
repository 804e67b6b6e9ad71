"""The real sets, where they are at hand: they may not be passed on with the project."""

import time
from pathlib import Path

import pytest

from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.data.prepare import prepare

PUBLISHED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def published(name: str) -> Path:
    folder = PUBLISHED / name
    if not folder.is_dir():
        pytest.skip(f"the data set {name} is not beside the project (../shared/data/{name})")
    return folder


def test_movielens_1m_is_prepared_in_seconds(tmp_path):
    folder = published("ml-1m")
    started = time.perf_counter()
    report = prepare("movielens-1m", tmp_path / "ml", folder=folder)
    assert time.perf_counter() - started < 15
    assert report.counts["interactions_read"] == 1_000_209
    assert report.counts["users"] == 6040
    assert report.counts["items"] == 3260
    started = time.perf_counter()
    dataset = Dataset.load(tmp_path / "ml")
    assert time.perf_counter() - started < 1.5  # 0.13 s on an idle core
    assert len(dataset.case_ids("train", 1)) == len(dataset.case_ids("test", 1)) == 1000
    assert dataset.items["2571"].title == "The Matrix"
    names = {(item.title, item.year) for item in dataset.items.values()}
    assert len(names) == len(dataset.items)
    assert all(item.year is not None for item in dataset.items.values())

    targets = load_targets(tmp_path / "ml")
    first = 0
    case_ids = dataset.case_ids("test", 1)
    for case_id in case_ids:
        candidates = sorted(dataset.case(case_id).candidates, key=lambda item: -item.popularity)
        first += candidates[0].item_id == targets[case_id]
    # Chance is 0.05; the most popular candidate is the liked one far more often.
    assert 0.2 < first / len(case_ids) < 0.35


def test_the_cds_sample_keeps_its_candidates(tmp_path):
    folder = published("agentcf-cds-dense")
    report = prepare("recbole", tmp_path / "cds", folder=folder)
    assert report.counts["users"] == 100 and report.counts["interactions"] == 800
    dataset, targets = Dataset.load(tmp_path / "cds"), load_targets(tmp_path / "cds")
    assert len(dataset.items) == 269
    given = {
        line.split("\t")[0]: set(line.split("\t")[1].split())
        for line in (folder / "CDs-100-user-dense.random").read_text().splitlines()
    }
    for case_id in dataset.case_ids("test"):
        case = dataset.case(case_id)
        assert case.activity == 8 and len(case.history) == 6 + case.round
        negatives = {item.item_id for item in case.candidates} - {targets[case_id]}
        assert len(negatives) == 19 and negatives <= given[case.user_id]

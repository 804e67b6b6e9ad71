"""What the other tests of these parts leave open."""

import io

import pytest
from rich.console import Console

from starec_ray.data.dataset import Case
from starec_ray.distill import journal as module
from starec_ray.distill.journal import Journal
from starec_ray.distill.report import print_distillation
from starec_ray.distill.screening import judge_follow_up, judge_ranking, judge_summary
from tests.distill.test_journal import ANSWER, question
from tests.distill.test_screening import SOUND, item, verdict


def test_the_threshold_itself_and_three_words_are_enough():
    assert verdict({}, score=0.5)[0] == "kept"
    assert judge_follow_up(["a", "b"], "b", score=0.5, min_score=0.5).verdict == "kept"
    assert verdict({"rationale": "It is dark."})[0] == "kept"


@pytest.mark.parametrize(("title", "told"), [("Big", "kept"), ("Up", "no preference words")])
def test_a_title_of_three_letters_can_be_named(title, told):
    history = ((item("h", title), True),)
    case = Case("u/0", "u", "train", 0, None, history, (item("a", "Alien"),), {}, 1)
    assert judge_summary(SOUND | {"summary": f"Likes {title}."}, case).verdict == told


def test_of_many_missing_candidates_the_first_five_are_named_and_the_others_counted():
    ids = [str(number) for number in range(9)]
    names = {item_id: f"Film {item_id}" for item_id in ids}
    reading = SOUND | {"ranking": ids, "malformed": True, "missing": 7}
    fault = judge_ranking(reading, names, "0", score=0.0, min_score=0.5).fault
    assert "missing: Film 2; Film 3; Film 4; Film 5; Film 6 and 2 more." in fault


def test_an_answer_is_on_the_disk_when_it_is_recorded(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        module.os, "fsync", lambda file: synced.append((tmp_path / "j").read_text())
    )
    with Journal(tmp_path / "j", "teacher") as journal:
        journal.record(question(), ANSWER)
        assert len(synced) == 1 and "Likes Amélie." in synced[0]


def test_the_screen_shows_the_commonest_verdict_first_and_ndcg_times_a_hundred():
    summary = {
        "traces": 9,
        "kept": 5,
        "tokens": {"prompt": 1200, "reply": 30},
        "verdicts": {"rank": {"kept": 5, "low score": 4}},
        "ndcg": {"rank": {"asked": 0.5, "screened": 0.75, "rethought": None}},
        "unanswered": {"rank again": 2},
    }
    console = Console(width=100, record=True, file=io.StringIO())
    print_distillation(summary, console)
    lines = [
        " ".join(line.split()) for line in console.export_text().replace("│", " ").splitlines()
    ]
    for line in (
        "9 answers, 5 kept",
        "rank kept 5",
        "low score 4",
        "rankings 50.0 75.0 -",
        "left open: rank again 2",
        "tokens: 1,200 of prompts, 30 of replies",
    ):
        assert line in lines


def test_the_commonest_verdict_is_the_first():
    import pyarrow as pa

    from starec_ray.distill.report import summarise
    from starec_ray.schemas import DISTILLED

    rows = [("rank", "low score"), ("rank", "kept"), ("rank", "kept")]
    columns = {name: pa.nulls(3, DISTILLED.field(name).type) for name in DISTILLED.names}
    columns |= {
        "kind": [k for k, _ in rows],
        "verdict": [v for _, v in rows],
        "case_id": ["u/0"] * 3,
        "attempt": [0] * 3,
    }
    assert list(summarise(pa.table(columns))["verdicts"]["rank"].items()) == [
        ("kept", 2),
        ("low score", 1),
    ]

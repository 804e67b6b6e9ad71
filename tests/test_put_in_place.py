"""What is written whole takes the place of what was there, also after a kill in the middle."""

from pathlib import Path

from starec_ray.files import put_in_place


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "weights").write_text(content)
    return path


def test_a_new_folder_takes_the_place_of_an_older_one(tmp_path):
    target = folder(tmp_path / "model", "old")
    put_in_place(folder(tmp_path / "model.part", "new"), target)
    assert (target / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_one_that_a_killed_run_was_letting_go_is_in_nobodys_way(tmp_path):
    target = folder(tmp_path / "model", "old")
    folder(tmp_path / "model.old", "older")
    put_in_place(folder(tmp_path / "model.part", "new"), target)
    assert (target / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]

"""The run folder: whole files, one writer, and what a person reads of rollouts."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from starec_ray import schemas
from starec_ray.cluster.failures import FailureEvent
from starec_ray.data.store import check_out
from starec_ray.errors import ConfigError, DataError, StorageError
from starec_ray.files import written_whole
from starec_ray.run_dir import EVALUATION, RunDir, flatten
from starec_ray.schemas import READABLE_ROLLOUTS

SAID = {  # of the rollouts below
    "reward": pa.array([1.0, -1.0, 0.5], pa.float32()),
    "advantage": pa.array([0.7, -0.7, 0.0], pa.float32()),
    "target_rank": pa.array([1, 2, None], pa.int16()),
    "chosen": pa.array(["1", "1", None]),
}
TITLES = {"1": "Alien (1979)", "2": "Heat [bold](1995)"}


def rollout_table() -> pa.Table:
    shared = {
        "case_id": "u1/0",
        "missing": 0,
        "repeated": 0,
        "invented": 0,
        "history_shed": 0,
        "summary_cut": False,
        "finish_reason": "stop",
        "weight_version": 4,
        "prompt_ids": [1],
        "reply_ids": [2],
        "logprobs": [-0.5],
        "malformed": False,
        "task": 0,
    }
    rank = shared | {"kind": "rank", "prompt": "Rank these.", "summary": None}
    good = {"rollout": 0, "reply": "1. Alien", "rationale": "Space.", "ranking": ["1", "2"]}
    bad = {"rollout": 1, "reply": "\x1b[31m??", "rationale": "", "ranking": ["2", "1"]}
    faults = {"malformed": True, "missing": 2}
    reflect = {
        "kind": "reflect",
        "prompt": "Reflect.",
        "summary": "Likes space.",
        "ranking": None,
        "rollout": 0,
        "reply": "Likes space.",
        "rationale": "",
        "task": 1,
    }
    return pa.Table.from_pylist(
        [rank | good, rank | bad | faults, shared | reflect], schema=schemas.ROLLOUTS
    )


def write_rollouts(run: RunDir, iteration: int) -> None:
    table = rollout_table()
    for name, values in SAID.items():
        table = table.append_column(name, values)
    run.write_rollouts(iteration, table, TITLES)


def test_the_configuration_comes_back_as_written(tmp_path) -> None:
    run = RunDir(tmp_path / "runs" / "first")
    config = {"model": "a/b", "lr": 1e-6, "reward_shape": "tiers", "attributes": ["year", "tags"]}
    run.write_config(config)
    assert RunDir(run.path, create=False).read_config() == config


def test_a_configuration_of_an_earlier_version_is_read_without_what_is_gone(tmp_path) -> None:
    run = RunDir(tmp_path)
    run.write_config({"run": {"seed": 1, "mode": "max"}, "training": {"mode": "kept"}})
    assert run.read_config() == {"run": {"seed": 1}, "training": {"mode": "kept"}}


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"run: {", "is not YAML"), (b"run: \xff", "is not YAML in UTF-8"), (b"- 1", "no mapping")],
)
def test_a_damaged_configuration_is_named(tmp_path, content, told) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"config\.yaml .*{told}"):
        RunDir(tmp_path).read_config()


def test_a_folder_that_is_no_run_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no run folder"):
        RunDir(tmp_path / "nowhere", create=False)
    with pytest.raises(ConfigError, match=r"config\.yaml does not exist"):
        RunDir(tmp_path).read_config()


@pytest.mark.parametrize("address", ["s3://bucket/run", Path("gs://bucket/run"), "file:///tmp/x"])
def test_an_address_of_a_store_is_refused_and_no_folder_of_that_name_is_made(
    tmp_path, monkeypatch, address
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is no folder of this machine: mount"):
        RunDir(address)
    with pytest.raises(ConfigError, match="is no folder of this machine: mount"):
        check_out(Path(address), force=False)
    assert not list(tmp_path.iterdir())


def test_metrics_are_one_json_line_an_iteration(tmp_path) -> None:
    run = RunDir(tmp_path)
    run.append_metrics({"iteration": 1, "loss": np.float32(0.5), "reward": {"mean": float("nan")}})
    run.append_metrics({"iteration": 2, "loss": 0.25, "counts": np.array([1, 2])})
    run.close()
    assert run.read_metrics() == [
        {"iteration": 1, "loss": 0.5, "reward": {"mean": None}},
        {"iteration": 2, "loss": 0.25, "counts": [1, 2]},
    ]
    assert any(run.tensorboard.iterdir())


def test_a_line_that_a_crash_cut_off_is_left_out_and_written_over(tmp_path) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_text('{"iteration": 1}\n{"iterat')
    assert run.read_metrics() == [{"iteration": 1}]
    run.append_metrics({"iteration": 2})
    run.close()
    assert run.read_metrics() == [{"iteration": 1}, {"iteration": 2}]


def test_a_loss_that_was_written_down_half_does_not_hide_those_after_it(tmp_path) -> None:
    run = RunDir(tmp_path)
    run.append_failure(FailureEvent(1.0, "learner", 0, cause="é"))
    with open(run.failures, "a") as file:
        file.write('{"time": 2.0, "ki')
    for seconds in (3.0, 4.0):
        run.append_failure(FailureEvent(seconds, "learner", 0))
    assert [line["time"] for line in run.read_failures()] == [1.0, 3.0, 4.0]


def test_a_run_that_goes_on_shows_each_iteration_once_in_tensorboard(tmp_path) -> None:
    run = RunDir(tmp_path)
    for iteration in (1, 2, 3):
        run.append_metrics({"iteration": iteration, "loss": 0.5})
    run.rewind(1)
    for iteration in (2, 3, 4):
        run.append_metrics({"iteration": iteration, "loss": 0.25})
    run.close()
    shown = EventAccumulator(str(run.tensorboard))
    shown.Reload()
    found = [(event.step, event.value) for event in shown.Scalars("loss")]
    assert found == [(1, 0.5), (2, 0.25), (3, 0.25), (4, 0.25)]


def test_rewinding_drops_what_came_after_the_checkpoint(tmp_path) -> None:
    run = RunDir(tmp_path)
    for iteration in (1, 2, 3):
        run.append_metrics({"iteration": iteration})
        write_rollouts(run, iteration)
    run.close()
    run.model.mkdir()
    (tmp_path / EVALUATION).write_text("{}")
    run.rewind(2)
    assert not run.model.exists() and not (tmp_path / EVALUATION).exists()
    assert [line["iteration"] for line in run.read_metrics()] == [1, 2]
    assert run.rollout_iterations() == [1, 2]


def test_rollouts_are_kept_as_text_a_person_can_read(tmp_path) -> None:
    run = RunDir(tmp_path)
    write_rollouts(run, 7)
    assert [path.name for path in run.rollouts.iterdir()] == ["iteration-00007.parquet"]
    table = run.read_rollouts()
    assert table.schema.equals(READABLE_ROLLOUTS)
    first, _, reflection = table.to_pylist()
    assert first["ranking"] == ["Alien (1979)", "Heat [bold](1995)"]
    assert (first["chosen"], first["target_rank"], first["weight_version"]) == (
        "Alien (1979)",
        1,
        4,
    )
    assert (reflection["ranking"], reflection["target_rank"]) == (None, None)


def test_rollouts_that_are_not_there_are_named(tmp_path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(DataError, match="no rollouts yet"):
        run.read_rollouts()
    write_rollouts(run, 3)
    with pytest.raises(DataError, match="no iteration 9; there are 1, from 3 to 3"):
        run.read_rollouts(9)


HOLD = """
import sys, time
from starec_ray.run_dir import RunDir
with RunDir(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_processes_can_not_write_one_run_and_a_dead_one_holds_nothing(tmp_path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        message = f"in use by process {holder.pid}"
        with pytest.raises(ConfigError, match=message), RunDir(tmp_path).lock():
            pass
        holder.kill()
    with RunDir(tmp_path).lock():
        pass


def test_a_file_that_could_not_be_written_whole_leaves_the_old_one(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as aside:
        aside.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nested_names_are_joined() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a/b/c": 1, "d": 2}


def test_clearing_removes_what_a_run_wrote_and_nothing_else(tmp_path) -> None:
    run = RunDir(tmp_path)
    run.write_config({"run": {}})
    run.append_metrics({"iteration": 1})
    run.close()
    write_rollouts(run, 1)
    run.model.mkdir()
    (tmp_path / EVALUATION).write_text("{}")
    (tmp_path / "thesis.tex").write_text("years of work")
    run.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_clearing_goes_through_a_link_and_leaves_what_no_run_wrote(tmp_path) -> None:
    big, models = tmp_path / "big", tmp_path / "models"
    for folder in (big / "iteration-00001", big / "data", models / "llama"):
        folder.mkdir(parents=True)
    run = RunDir(tmp_path / "run")
    run.checkpoints.symlink_to(big)
    run.model.symlink_to(models)
    (run.path / EVALUATION).write_text("{}")
    run.clear()
    assert [path.name for path in run.path.iterdir()] == ["checkpoints"]
    assert [path.name for path in big.iterdir()] == ["data"]
    assert (models / "llama").exists()


def test_what_can_not_be_removed_is_told_with_the_folder(tmp_path, monkeypatch) -> None:
    run = RunDir(tmp_path)
    run.model.mkdir()
    monkeypatch.setattr("shutil.rmtree", Mock(side_effect=PermissionError("not yours")))
    with pytest.raises(StorageError, match=rf"{tmp_path} can't be written: not yours"):
        run.clear()


def test_a_full_disk_does_not_replace_what_ended_the_run(tmp_path) -> None:
    run = RunDir(tmp_path)
    run.append_metrics({"iteration": 1})
    writer = run._writer
    run._writer = Mock(close=Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(StorageError, match="the cause"):
        try:
            raise StorageError("the cause")
        finally:
            run.close()
    writer.close()
    run.append_metrics({"iteration": 2})  # into a file of its own
    run.close()
    assert len(list(run.tensorboard.iterdir())) == 2


def test_a_place_that_can_not_be_written_is_named_with_what_to_do(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/run can't be written: .*give another folder"):
        RunDir(tmp_path / "file" / "run")
    run = RunDir(tmp_path / "run")
    (run.path / "lock").mkdir()
    with pytest.raises(StorageError, match=r"/run can't be written: .*give another"), run.lock():
        pass

"""`starec rollouts`: what is shown of the rollouts kept."""

import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from starec_ray import schemas
from starec_ray.cli.rollouts import rollouts as rollouts_command
from starec_ray.errors import DataError
from starec_ray.run_dir import RunDir

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


def write_rollouts(run: RunDir, iteration: int, prompt: str = "") -> None:
    table = rollout_table()
    if prompt:
        prompts = pa.array([prompt] * len(table))
        table = table.set_column(table.schema.get_field_index("prompt"), "prompt", prompts)
    for name, values in SAID.items():
        table = table.append_column(name, values)
    run.write_rollouts(iteration, table, TITLES)


@pytest.fixture
def show(tmp_path):
    write_rollouts(RunDir(tmp_path), 1)
    app = typer.Typer()
    app.command()(rollouts_command)

    def run(*options: str):
        return CliRunner().invoke(app, [str(tmp_path), *options], env={"COLUMNS": "120"})

    return run


def test_rollouts_are_shown_with_the_target_marked(show) -> None:
    result = show()
    assert result.exit_code == 0, result.output
    assert "→  1. Alien (1979)" in result.output
    assert "Heat [bold](1995)" in result.output  # text, not markup
    assert "Space." in result.output
    assert "reward +1.000" in result.output
    assert "malformed: 2 missing" in result.output
    assert "\x1b[31m" not in result.output
    assert result.output.count("Rank these.") == 1  # once a group
    assert "3 of 3 rollouts" in result.output


def test_a_case_is_looked_for_in_all_iterations_or_in_the_one_that_is_named(show, tmp_path) -> None:
    write_rollouts(RunDir(tmp_path), 4)
    found = show("--case", "u1/0").output
    assert "6 of 6 rollouts" in found and "iteration 1 ·" in found and "iteration 4 ·" in found
    assert "3 of 3 rollouts" in show("--case", "u1/0", "--iteration", "4").output
    missing = show("--case", "nobody/0").exception
    assert isinstance(missing, DataError) and "of case nobody/0 in any iteration" in str(missing)
    for rollouts in (tmp_path / "rollouts").iterdir():
        rollouts.unlink()
    none = show("--case", "u1/0").exception
    assert isinstance(none, DataError) and "holds no rollouts yet" in str(none)


def test_a_prompt_that_another_iteration_had_otherwise_is_shown(show, tmp_path) -> None:
    write_rollouts(RunDir(tmp_path), 2, prompt="Reflect anew.")
    output = show("--case", "u1/0", "--kind", "reflect").output
    assert output.count("Reflect.") == 1 and output.count("Reflect anew.") == 1


def test_rollouts_are_chosen_by_kind_case_reward_and_number(show) -> None:
    assert "rank ·" not in show("--kind", "reflect").output
    assert "reward -1.000" in show("--worst", "--limit", "1").output
    assert "reward +1.000" in show("--best", "--limit", "1").output
    assert show("--best", "--worst").exit_code != 0

import pytest
from typer.testing import CliRunner

from starec_ray.cli.data import app
from starec_ray.errors import DataError

runner = CliRunner()
FEW = ["--simulated-users", "12", "--train-users", "4", "--validation-users", "2",
       "--test-users", "2"]  # fmt: skip


def test_prepare_and_show_print_what_a_folder_holds(tmp_path):
    out = tmp_path / "out"
    made = runner.invoke(app, ["prepare", "synthetic", "--out", str(out), "--rounds", "3", *FEW])
    assert made.exit_code == 0, made.output
    shown = runner.invoke(app, ["show", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "12 (4 users" in shown.output and "candidates a case" in shown.output


def test_every_parameter_is_in_the_help():
    text = runner.invoke(app, ["prepare", "--help"], env={"COLUMNS": "200"}).output
    for flag in ("--min-user-interactions", "--min-item-interactions", "--max-history",
                 "--positive-above", "--train-users", "--validation-users", "--test-users",
                 "--negatives", "--rounds", "--seed", "--skip-bad-rows", "--force"):  # fmt: skip
        assert flag in text
    assert "Default: 1000" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["elsewhere"], "there is no source 'elsewhere'"),
        (["amazon"], "give --source"),
        (["synthetic", "--source", "."], "reads no files"),
        (["synthetic", "--negatives", "0"], "negatives is 0"),
        (["synthetic", "--positive-above", "nan"], "positive_above is nan, must be a finite"),
        (["synthetic", "--positive-above", "inf"], "positive_above is inf, must be a finite"),
        (["synthetic", "--test-users", "5000"], "1000 are eligible"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, arguments, message):
    result = runner.invoke(app, ["prepare", *arguments, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, DataError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()

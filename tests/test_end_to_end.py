"""The whole of it on the real engines: vLLM env runners, reward actors, DeepSpeed learners.

With ZeRO-2 and the object store; with ZeRO-3 and a broadcast see `test_algorithm`.
"""

import json
import shutil
from unittest.mock import Mock

import pyarrow.compute as pc
import pytest
import ray
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from starec_ray.agent.agent import Agent
from starec_ray.checkpoints.files import FORMAT, PROGRESS, write_manifest
from starec_ray.cli.rollouts import select
from starec_ray.config.identity import identity
from starec_ray.config.recipe import resolved_sections
from starec_ray.errors import ConfigError
from starec_ray.jobs.evaluate import evaluate_models, trained_models
from starec_ray.jobs.train import train
from starec_ray.run_dir import RunDir
from tests.documented_metrics import undocumented
from tests.small_world import dataset, write_random_traces, write_small_world
from tests.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.engine

# Of every iteration, beside what the tests look into.
MEASURED = {
    *(f"{kind}/{name}" for kind in ("rank", "reflect") for name in ("reward", "malformed")),
    *("rank/groups_without_variance", "rank/prompt_tokens", "rank/reply_tokens"),
    *("rank/history_shed", "clip_fraction", "entropy", "grad_norm", "logprob_gap", "lr"),
    *("seconds/wait_for_rollouts", "seconds/update", "seconds/weight_transfer"),
    *("tokens_per_second/rank", "tokens_per_second/update"),
    *(f"memory_bytes/{actor}" for actor in ("driver", "env_runner_1", "reward_actor_0")),
}


@pytest.fixture(scope="module")
def traces(small_world, tiny_model, tmp_path_factory):
    config = tiny_recipe(small_world, tiny_model, None).config
    agent = Agent.from_config(config, dataset(small_world))
    return write_random_traces(tmp_path_factory.mktemp("traces") / "t.parquet", agent, 192)


def test_training_raises_the_reward_over_the_untrained_policy(
    small_world, tiny_model, traces, tmp_path, ray_cluster, capsys
):
    console = Console(width=160)
    recipe = tiny_recipe(
        small_world,
        tiny_model,
        traces,
        model={"constrained_decoding": True},
        run={"iterations": 12, "checkpoint_every": 12},
        # For runners that share GPUs with learners.
        env_runners={"sleep_while_learning": True},
    )
    run = train(recipe, tmp_path / "run", console)

    lines = run.read_metrics()
    assert [line["stage"] for line in lines] == ["anchor"] * 8 + ["reinforce"] * 12
    reinforce = lines[8:]
    assert reinforce[-1]["rank/reward"] > reinforce[0]["rank/reward"] + 0.1
    assert set(reinforce[-1]) >= MEASURED
    assert not undocumented(lines)
    for line in reinforce:
        assert line["reflect/reward"] >= -1
        assert line["ratio_mean"] == pytest.approx(1.0, abs=0.05)
        assert line["kl"] >= 0
        assert line["rank/malformed"] == 0  # the constraint keeps rankings whole
        assert line["memory_bytes/learner_1"] > 0 and line["memory_bytes/env_runner_2"] > 0

    rollouts = run.read_rollouts()
    assert set(rollouts["kind"].to_pylist()) == {"rank", "reflect", "rank_again"}
    best = select(rollouts, kind="rank", best=True, worst=False, limit=1).to_pylist()[0]
    assert best["chosen"] == "Delta"
    assert best["reward"] == pc.max(rollouts["reward"]).as_py()

    model = AutoModelForCausalLM.from_pretrained(run.model)
    assert (
        model.num_parameters() == AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    )
    assert AutoTokenizer.from_pretrained(run.model).chat_template

    summary = json.loads((run.path / "evaluation.json").read_text())
    scores = {result["policy"]: result for result in summary["results"]}
    assert set(scores) >= {"random", "popularity", "untrained", "anchored", "reinforced"}
    assert "reinforced+slow" in scores
    assert scores["untrained"]["malformed_rate"] == scores["reinforced"]["malformed_rate"] == 0
    assert scores["reinforced"]["ndcg@10"] > scores["untrained"]["ndcg@10"]
    assert (run.path / "policies.png").stat().st_size > 1000
    assert (run.path / "training.png").stat().st_size > 1000
    assert list(run.tensorboard.iterdir())


def test_a_saved_run_is_evaluated_on_its_own(small_world, tiny_model, tmp_path, ray_cluster):
    sections = {
        "run": {"evaluate_slow_thinking": False, "evaluation_cases": 4},
        "env_runners": {"num_env_runners": 1},
    }
    recipe = tiny_recipe(small_world, tiny_model, None, **sections)
    run = RunDir(tmp_path)
    shutil.copytree(tiny_model, run.model)
    summary = evaluate_models(trained_models(run), recipe, run.path, Console())
    scores = {result["policy"]: result["ndcg@10"] for result in summary["results"]}
    assert summary["cases"] == 4
    assert scores["reinforced"] == scores["untrained"]  # the same weights
    assert {result["malformed_rate"] for result in summary["results"][2:]} == {1.0}


def test_a_dry_run_prints_the_plan_and_starts_nothing(small_world, tiny_model, capsys, monkeypatch):
    from starec_ray.jobs.plan import print_plan

    for start in ("init", "remote"):
        monkeypatch.setattr(ray, start, Mock(side_effect=AssertionError(start)))
    print_plan(tiny_recipe(small_world, tiny_model, None), Console(width=200))
    out = capsys.readouterr().out
    assert "vLLM env runner" in out and "DeepSpeed learner (ZeRO-2)" in out and "GiB" in out


def test_a_second_run_into_the_same_folder_is_refused_before_anything_starts(
    small_world, tiny_model, tmp_path
):
    run = RunDir(tmp_path)
    run.append_metrics({"iteration": 1})
    with pytest.raises(ConfigError, match=r"holds a run already.*--overwrite"):
        train(tiny_recipe(small_world, tiny_model, None), tmp_path, Console())
    assert run.read_metrics() == [{"iteration": 1}]


def test_a_storage_that_holds_another_runs_checkpoints_is_refused_and_left_alone(
    small_world, tiny_model, tmp_path
):
    storage = RunDir(tmp_path / "other")
    recipe = tiny_recipe(
        small_world, tiny_model, None, run={"checkpoint_storage": f"file://{storage.checkpoints}"}
    )
    recipe.config.resolve()
    write_checkpoint(storage, 5, recipe)
    with pytest.raises(ConfigError, match=r"checkpoints already \(iteration-00005\)"):
        train(recipe, tmp_path / "run", Console())
    assert (storage.checkpoints / "iteration-00005" / PROGRESS).exists()


def test_a_run_resumes_by_its_own_recipe_alone_and_says_when_there_is_nothing_to_do(
    small_world, tiny_model, tmp_path, tmp_path_factory, capsys
):
    recipe = tiny_recipe(small_world, tiny_model, None, run={"iterations": 3, "evaluate": False})
    with pytest.raises(ConfigError, match="holds no run to resume"):
        train(recipe, tmp_path, Console(), resume=True)

    run = RunDir(tmp_path)
    recipe.config.resolve()
    run.write_config(resolved_sections(recipe))
    run.append_metrics({"iteration": 5})
    run.close()
    run.model.mkdir()
    write_checkpoint(run, 5, recipe)
    other_world = write_small_world(tmp_path_factory.mktemp("other world"), users=12)
    wider = shutil.copytree(tiny_model, tmp_path_factory.mktemp("other model") / "wider")
    shape = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps(shape | {"intermediate_size": 999}))
    others = (tiny_recipe(other_world, tiny_model, None), tiny_recipe(small_world, wider, None))
    for iteration, other in enumerate(others, start=6):
        other.config.resolve()
        write_checkpoint(run, iteration, other)
    train(recipe, tmp_path, Console(width=200), resume=True)
    told = " ".join(capsys.readouterr().out.split())
    for number, what in ((6, "data.path"), (7, "the model's shape")):
        why = f"{what} is no longer what it learned from"
        assert f"iteration-{number:05d} is not this run's: {why}" in told
    assert "nothing to do" in told

    with pytest.raises(ConfigError, match=r"no checkpoint iteration-9; there are: iteration-00005"):
        train(recipe, tmp_path, Console(), resume=True, checkpoint="iteration-9")
    shutil.rmtree(run.checkpoints / "iteration-00005")
    with pytest.raises(ConfigError, match=r"iteration-00007.*iteration-00006.*Bring back"):
        train(recipe, tmp_path, Console(), resume=True)

    other = tiny_recipe(small_world, tiny_model, None, training={"group_size": 4})
    with pytest.raises(ConfigError, match=r"training.group_size was 16 and is 4"):
        train(other, tmp_path, Console(), resume=True)
    assert run.read_metrics() == [{"iteration": 5}]


def test_going_back_in_a_finished_run_is_no_end_and_takes_nothing_away_before_it_can_start(
    small_world, tiny_model, tmp_path, monkeypatch
):
    recipe = tiny_recipe(small_world, tiny_model, None, run={"iterations": 3, "evaluate": False})
    run = RunDir(tmp_path)
    recipe.config.resolve()
    run.write_config(resolved_sections(recipe))
    run.model.mkdir()
    write_checkpoint(run, 5, recipe)
    write_checkpoint(run, 6, recipe)

    def no_place(settings: dict) -> None:
        raise ConfigError("no cluster")

    monkeypatch.setattr("starec_ray.jobs.train.start_ray", no_place)
    with pytest.raises(ConfigError, match="no cluster"):
        train(recipe, tmp_path, Console(), resume=True, checkpoint="iteration-00005")
    assert (run.checkpoints / "iteration-00006" / PROGRESS).exists()


def write_checkpoint(run, iteration, recipe):
    """The newest of a run by this recipe, after three iterations, without any weights."""
    checkpoint = run.checkpoints / f"iteration-{iteration:05d}"
    checkpoint.mkdir(parents=True)
    progress = {"format": FORMAT, "iterations_done": 3, "identity": identity(recipe.config)}
    (checkpoint / PROGRESS).write_text(json.dumps(progress))
    write_manifest(checkpoint)


def test_a_folder_with_something_of_that_name_is_left_alone(
    small_world, tiny_model, tmp_path, ray_cluster
):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    recipe = tiny_recipe(small_world, tiny_model, None)
    with pytest.raises(ConfigError, match=r"holds a run already \(model\)"):
        train(recipe, tmp_path, Console())
    # Nor is anything removed for a run that can't be started.
    recipe.config.num_gpus_per_learner = 999
    with pytest.raises(ConfigError, match="GPUs are wanted"):
        train(recipe, tmp_path, Console(), overwrite=True)
    assert (tmp_path / "model" / "mine").exists()


def test_a_run_does_not_begin_among_the_tables_of_a_data_folder(small_world, tiny_model):
    before = sorted(small_world.iterdir())
    with pytest.raises(ConfigError, match="is a data folder: give another --run-dir"):
        train(tiny_recipe(small_world, tiny_model, None), small_world, Console(), overwrite=True)
    assert sorted(small_world.iterdir()) == before


def test_a_run_folder_in_use_is_refused(tmp_path):
    run = RunDir(tmp_path)
    with run.lock(), pytest.raises(ConfigError, match="in use by process"), RunDir(tmp_path).lock():
        pass

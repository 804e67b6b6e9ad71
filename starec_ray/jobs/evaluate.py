"""Evaluate what a run made: all policies over the same test cases."""

import tempfile
from pathlib import Path

from rich.console import Console

from starec_ray.agent.agent import Agent
from starec_ray.cluster.connection import check_resources, start_ray
from starec_ray.cluster.placement import actor_bundles
from starec_ray.config.recipe import Recipe
from starec_ray.data.dataset import Dataset
from starec_ray.errors import ConfigError, DataError
from starec_ray.evaluation.evaluate import check_cases, evaluate_all, evaluation_case_ids
from starec_ray.evaluation.report import (
    OUT_REMEDY,
    describe_evaluation,
    print_evaluation,
    write_evaluation,
)
from starec_ray.evaluation.session import Session, evaluation_session
from starec_ray.files import failing_for
from starec_ray.jobs.inputs import check_room_of_model
from starec_ray.models.resolve import check_same_shape, resolve_model
from starec_ray.run_dir import RunDir


def trained_models(run: RunDir) -> dict[str, Path]:
    """The models of a run by policy.

    Raises:
        ConfigError: if there is none.
    """
    models = {"anchored": run.anchored_model, "reinforced": run.model}
    found = {name: folder for name, folder in models.items() if folder.is_dir()}
    if not found:
        raise ConfigError(f"{run.path} holds no trained model (model/ or anchored_model/) yet.")
    return found


def evaluate_models(
    models: dict[str, Path],
    recipe: Recipe,
    out: Path,
    console: Console,
    split: str = "test",
    *,
    untrained: bool = True,
    trained_with: str = "",
) -> dict:
    """Random order, popularity, the recipe's untrained model, then `models` (policy → folder).

    Args:
        trained_with: the data folder that the models learned from, where it is another one: users
            that they may have learned from are told of, on the screen and in the summary.

    Raises:
        ConfigError: if one of the models isn't there, or has another shape than the recipe's, or
            prompts or rankings of these data have no room.
        StorageError: if `out` can't be written.
    """
    config = recipe.config.copy(copy_frozen=False).resolve()
    for folder in models.values():
        check_same_shape(str(folder), config.model_path)
    models = {policy: Path(resolve_model(str(folder))) for policy, folder in models.items()}
    if untrained:
        models = {"untrained": Path(config.model_path), **models}
    run = recipe.run
    dataset = Dataset.load(config.data_path)
    check_cases(dataset, split, run.evaluation_cases, slow_thinking=run.evaluate_slow_thinking)
    check_room_of_model(config, Agent.from_config(config, dataset), [split])
    known = users_trained_on(dataset, split, run.evaluation_cases, trained_with)
    if known:
        console.print(
            f"[yellow]{known} of these {split} users are training users of {trained_with}[/], "
            "which these models were trained with: their figures may be too good."
        )
    _check_writable(out)
    start_ray(recipe.run.ray)
    check_resources(actor_bundles(config, learners=False))
    with evaluation_session(config) as session:
        return compare(session, models, recipe, out, console, split, trained_users=known)


def _check_writable(out: Path) -> None:
    """Makes the folder, and leaves nothing in it."""
    with failing_for(out, OUT_REMEDY):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out, buffering=0) as probe:
            probe.write(bytes(4096))  # a full disk takes an empty file


def users_trained_on(dataset: Dataset, split: str, limit: int, trained_with: str) -> int:
    """How many of the users that are evaluated are training users of another data folder, one made
    of the same files; 0 where that folder isn't what it was any more."""
    if split == "train" or not trained_with:
        return 0
    try:
        other = Dataset.load(trained_with)
    except DataError:
        return 0
    if _origin(other) != _origin(dataset):
        return 0  # whose user ids are other people's
    cases = evaluation_case_ids(dataset, split, limit or None)
    learned_from = {other.case(case_id).user_id for case_id in other.case_ids("train")}
    return len({dataset.case(case_id).user_id for case_id in cases} & learned_from)


def _origin(dataset: Dataset) -> tuple:
    """What decides who a user id is."""
    manifest = dataset.manifest
    simulated = manifest["parameters"].get("simulated_users")
    return manifest["source"], manifest["inputs"], simulated and (simulated, manifest["seed"])


def compare(
    session: Session,
    models: dict[str, Path],
    recipe: Recipe,
    out: Path,
    console: Console,
    split: str = "test",
    *,
    trained_users: int = 0,
) -> dict:
    """Random order, popularity, then `models`, with engines that run already.

    Prints the figures, then writes evaluation.json and its companions into `out`; returns what
    evaluation.json holds.
    """
    limit = recipe.run.evaluation_cases or None
    results = evaluate_all(
        session.models,
        session.agent,
        session.dataset,
        session.rewards,
        evaluation_case_ids(session.dataset, split, limit),
        {name: str(folder) for name, folder in models.items()},
        slow_thinking=recipe.run.evaluate_slow_thinking,
        batch_size=recipe.config.max_num_seqs * recipe.config.num_env_runners,
        seed=recipe.run.seed,
    )
    summary = describe_evaluation(
        results,
        session.dataset,
        data_path=str(recipe.config.data_path),
        split=split,
        seed=recipe.run.seed,
        trained_users=trained_users,
    )
    print_evaluation(summary, console)  # first: the disk may be full by now
    write_evaluation(out, results, summary)
    return summary

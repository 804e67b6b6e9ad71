"""Whether a run's data, traces and model will do, before anything of it starts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask
from starec_ray.config.recipe import Recipe
from starec_ray.data.dataset import Dataset
from starec_ray.errors import ConfigError, DataError
from starec_ray.evaluation.evaluate import check_cases
from starec_ray.models.parameters import without_weights
from starec_ray.models.resolve import check_chat_template, load_tokenizer, resolve_model
from starec_ray.models.tokens import count_tokens
from starec_ray.training.traces import read_traces, trace_files

CASES_CHECKED = 5000  # of a split: some seconds


def check_before_start(recipe: Recipe) -> None:
    """Checks data, traces and model.

    Raises:
        ConfigError, DataError: what the run would stop at, first or at its end.
    """
    config = recipe.config
    check_data(recipe, Dataset.load(config.data_path))
    check_learnable(without_weights(config.model_name), config.max_model_len)


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Checks the cases and traces that a run will need.

    Raises:
        ConfigError, DataError: what the run would stop at, first or at its end.
    """
    config, run = recipe.config, recipe.run
    if run.iterations > (lasts := updates_until_zero(config.lr)):
        raise ConfigError(
            f"training.lr is 0 from iteration {lasts + 1:g} of stage two on, and run.iterations is "
            f"{run.iterations}: lengthen the schedule, or take fewer iterations."
        )
    if not dataset.case_ids("train"):
        raise DataError(f"{config.data_path} has no training cases.")
    reflects = run.iterations and config.reflect_share
    if reflects and not any(map(dataset.next_case_id, dataset.case_ids("train"))):
        raise ConfigError(
            f"training.reflect_share is {config.reflect_share:g}, but no training user of "
            f"{config.data_path} has a second case, which reflections are judged by: prepare the "
            "data with --rounds 2 or more, or set it to 0."
        )
    validated = config.evaluation_interval or config.anchor_validation_cases
    if validated:
        check_cases(dataset, "validation", 0, slow_thinking=False)
    if run.evaluate:
        limit, slow = run.evaluation_cases, run.evaluate_slow_thinking
        check_cases(dataset, "test", limit, slow_thinking=slow)
    agent = Agent.from_config(config, dataset)
    for path in trace_files(config.traces):
        read_traces(path, agent)
    asked = {"train": True, "validation": validated, "test": run.evaluate}
    check_room_of_model(config, agent, [split for split in asked if asked[split]])


def updates_until_zero(lr: float | Sequence[Sequence[float]]) -> float:
    """So many updates learn something before a schedule ends at 0; infinite if it doesn't."""
    if isinstance(lr, int | float) or lr[-1][1]:
        return math.inf
    rising = [steps for steps, value in lr if value]
    return next(steps for steps, _ in lr if not rising or steps > rising[-1])


def check_room_of_model(config: Any, agent: Agent, splits: Sequence[str]) -> None:
    """`check_room`, with the tokenizer of the configuration's model if that lies here already.

    Raises:
        ConfigError: it has no chat template, or something is too small.
    """
    model = resolve_model(config.model_name)
    if Path(model).is_dir():
        check_chat_template(model)
        check_room(config, agent, load_tokenizer(model), splits)


def check_room(config: Any, agent: Agent, tokenizer: Any, splits: Sequence[str]) -> None:
    """Checks that prompts and whole rankings of the cases of these splits have room, of
    CASES_CHECKED cases at most.

    Raises:
        ConfigError: naming what is too small.
    """
    dataset = agent.dataset
    for split in splits:
        cases = dataset.case_ids(split)
        some = cases[:: math.ceil(len(cases) / CASES_CHECKED)]
        agent.check_room(some, lambda messages: count_tokens(tokenizer, messages))
        forms = (agent.reply_form(RankTask(case_id, ""), tokenizer) for case_id in some)
        longest = max((form.longest for form in forms if form), default=0)
        if longest > config.max_rank_tokens:
            raise ConfigError(
                f"max_rank_tokens is {config.max_rank_tokens}, but a whole ranking of a {split} "
                f"case takes up to {longest} tokens: raise it."
            )


def check_learnable(model: Any, max_model_len: int) -> None:
    """Checks that the learner can train a model with that window.

    Args:
        model: what `without_weights` gives; of None, whose config can't be fetched, the learner
            itself tells.

    Raises:
        ConfigError: if it can't.
    """
    if model is not None:
        # Loads modelling code, for seconds.
        from learners.trainable import check_trainable, check_window

        check_trainable(model)
        check_window(model.config, max_model_len)

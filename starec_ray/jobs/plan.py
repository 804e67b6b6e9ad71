"""What a run would start and need, without starting it (`starec train … --dry-run`)."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from starec_ray.agent.agent import Agent
from starec_ray.agent.tasks import RankTask
from starec_ray.cluster.sizing import GIB, learner_bytes, runner_bytes
from starec_ray.config.recipe import Recipe
from starec_ray.data.dataset import Dataset
from starec_ray.errors import ConfigError, DataError
from starec_ray.evaluation.evaluate import check_cases
from starec_ray.models.engine_limits import check_engine
from starec_ray.models.resolve import (
    EMBEDDED,
    check_chat_template,
    load_tokenizer,
    resolve_dtype,
    resolve_model,
)
from starec_ray.models.tokens import count_tokens
from starec_ray.training.traces import read_traces, trace_files

CASES_CHECKED = 5000  # of a split: some seconds
REMEDY = (
    "fewer or smaller env_runners and learners, run.ray.num_cpus (on one machine more logical "
    "CPUs than cores will do: its actors take turns), or a larger cluster (RAY_ADDRESS)."
)


def print_plan(recipe: Recipe, console: Console) -> None:
    """Checks configuration, data and model, and prints actors, resources and memory estimates.

    Raises:
        ConfigError, DataError: what a real start would stop at.
    """
    config = recipe.config
    config.check_inputs()
    dataset = Dataset.load(config.data_path)
    check_data(recipe, dataset)
    model = _without_weights(config.model_name)
    on_gpu = config.num_gpus_per_learner > 0 or config.num_gpus_per_env_runner > 0
    dtype = resolve_dtype(config.dtype, on_gpu)
    if model is not None:
        _check_trainable(model, config.max_model_len)
        check_engine(config, resolve_model(config.model_name), dtype)
    parameters, origin = _count(config.model_name, model)
    console.print(
        f"data:   {config.data_path}: {len(dataset.items)} items, "
        + ", ".join(
            f"{len(dataset.case_ids(split))} {split} cases"
            for split in ("train", "validation", "test")
        )
    )
    known = f"{parameters / 1e9:.2f} B parameters ({origin})" if parameters else origin
    console.print(f"model:  {config.model_name}, {known}, {dtype}")
    traces = math.ceil(config.num_traces / config.anchor_batch_size) * config.anchor_epochs
    console.print(
        f"anchor: at most {traces} optimiser steps; reinforcement: {recipe.run.iterations} "
        f"iterations of {config.cases_per_iteration} cases × {config.group_size} rollouts"
    )
    console.print(_table(config, parameters, 2 if dtype == "bfloat16" else 4))


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
    if reflects and not any(
        dataset.case(case_id).next_case_id for case_id in dataset.case_ids("train")
    ):
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
    model = resolve_model(config.model_name)
    if Path(model).is_dir():  # otherwise it may not be fetched yet
        check_chat_template(model)
        check_room(config, agent, load_tokenizer(model), [s for s in asked if asked[s]])


def updates_until_zero(lr: float | Sequence[Sequence[float]]) -> float:
    """So many updates learn something before a schedule ends at 0; infinite if it doesn't."""
    if isinstance(lr, int | float) or lr[-1][1]:
        return math.inf
    rising = [steps for steps, value in lr if value]
    return next(steps for steps, _ in lr if not rising or steps > rising[-1])


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


def check_learnable(name: str, max_model_len: int) -> None:
    """Raises ConfigError if the learner can't train the model with that window; where its config
    can't be fetched the learner itself tells."""
    if (model := _without_weights(name)) is not None:
        _check_trainable(model, max_model_len)


def count_parameters(name: str) -> tuple[int, str]:
    """(parameters, where the number is from).

    Where the model's config can't be fetched, the number that its name tells ("-7B"); without
    one 0.
    """
    return _count(name, _without_weights(name))


def _check_trainable(model: Any, max_model_len: int) -> None:
    from learners.trainable import check_trainable, check_window  # loads modelling code, seconds

    check_trainable(model)
    check_window(model.config, max_model_len)


def _count(name: str, model: Any) -> tuple[int, str]:
    if model is None:
        parameters = _parameters_in(name)
        told = "by its name" if parameters else "sizes unknown"
        return parameters, f"{told}: its config can't be fetched from here"
    model.tie_weights()  # else a tied head would count twice
    origin = "embedded" if name in EMBEDDED else "from its config"
    return sum(p.numel() for p in model.parameters()), origin


def _without_weights(name: str) -> Any:
    """The causal language model of that name, on the device "meta"; None where its config can't
    be fetched, which takes transformers half a minute to find out.

    Raises:
        ConfigError: it is no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        model_config = AutoConfig.from_pretrained(resolve_model(name))
    except OSError:
        return None
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(model_config)
    except ValueError as error:
        raise ConfigError(f"{name!r} is no causal language model: {error}") from error


def _parameters_in(name: str) -> int:
    """ "owner/Model-0.5B-Instruct" → 500,000,000; 0 if the name tells none."""
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([BM])(?![a-z])", name, re.IGNORECASE)
    if found is None:
        return 0
    return round(float(found[1]) * {"b": 1e9, "m": 1e6}[found[2].lower()])


def _table(config: Any, parameters: int, bytes_each: int) -> Table:
    table = Table(title="actors", caption="memory of weights and states; activations on top")
    for heading in ("actor", "number", "CPUs each", "GPUs each", "memory each"):
        table.add_column(heading, justify="left" if heading == "actor" else "right")

    def memory(size: float) -> str:
        return f"{size / GIB:.1f} GiB" if parameters else "?"

    rows = [
        (
            f"vLLM env runner (tensor parallel {config.tensor_parallel_size})",
            config.num_env_runners,
            config.num_cpus_per_env_runner,
            config.num_gpus_per_env_runner,
            memory(runner_bytes(parameters, bytes_each, config)),
        ),
        (
            f"DeepSpeed learner (ZeRO-{config.zero_stage})",
            max(1, config.num_learners),
            config.num_cpus_per_learner,
            config.num_gpus_per_learner,
            memory(learner_bytes(parameters, bytes_each, config)),
        ),
        ("reward actor", config.num_reward_actors, 0, 0, "0.2 GiB"),
    ]
    for row in rows:
        table.add_row(*map(str, row))
    return table

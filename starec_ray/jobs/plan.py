"""What a run would start and need, without starting it (`starec train … --dry-run`)."""

import math
from typing import Any

from rich.console import Console
from rich.table import Table

from starec_ray.cluster.memory import GIB, learner_bytes, runner_bytes
from starec_ray.config.recipe import Recipe
from starec_ray.data.dataset import Dataset
from starec_ray.jobs.inputs import check_data, check_learnable
from starec_ray.models.engine_limits import check_engine
from starec_ray.models.parameters import count_parameters, without_weights
from starec_ray.models.resolve import VALUE_BYTES, dtype_of, resolve_model


def print_plan(recipe: Recipe, console: Console) -> None:
    """Checks configuration, data and model, and prints actors, resources and memory estimates.

    Raises:
        ConfigError, DataError: what a real start would stop at.
    """
    config = recipe.config
    config.check_inputs()
    dataset = Dataset.load(config.data_path)
    check_data(recipe, dataset)
    model = without_weights(config.model_name)
    dtype = dtype_of(config)
    check_learnable(model, config.max_model_len)
    if model is not None:
        check_engine(config, resolve_model(config.model_name), dtype)
    parameters, origin = count_parameters(config.model_name, model)
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
    console.print(_table(config, parameters, VALUE_BYTES[dtype]))


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

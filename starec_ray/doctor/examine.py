"""The whole examination: the cluster, and what a recipe wants of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from starec_ray.cluster import start_ray
from starec_ray.doctor import checks
from starec_ray.doctor.checks import Finding, Wanted
from starec_ray.doctor.probe import versions
from starec_ray.doctor.survey import survey
from starec_ray.errors import ConfigError
from starec_ray.models import resolve_dtype, resolve_model
from starec_ray.placement import actor_bundles
from starec_ray.plan import count_parameters
from starec_ray.recipe import Recipe
from starec_ray.sizing import learner_bytes, runner_bytes
from starec_ray.traces import BUNDLED_TRACES

MARKS = {"good": "[green]✓[/]", "warning": "[yellow]![/]", "bad": "[red]✗[/]"}


def examine(recipe: Recipe | None, storage: Sequence[Path], *, may_grow: bool) -> Iterator[Finding]:
    """Findings, as they are made; joins the cluster that RAY_ADDRESS names, else starts a Ray.

    Args:
        recipe: what is to be run; None examines the cluster alone.
        storage: folders that every node is to see; of one that isn't there yet, the nearest
            folder above it.
        may_grow: what the cluster lacks is a warning: its autoscaler may bring it.
    """
    start_ray(recipe.run.ray if recipe else {})
    model, inputs, wanted = "", dict[str, str](), None
    if recipe:
        try:
            recipe.config.check_inputs()
            hashes = recipe.config.input_hashes()
            # The bundled traces come with the program, wherever that lies on a node.
            inputs = {
                str(Path(path).absolute()): sha
                for path, sha in hashes.items()
                if Path(path) != BUNDLED_TRACES
            }
        except ConfigError as error:
            yield Finding("data", "bad", str(error))
        try:
            model = resolve_model(recipe.config.model_name)
            wanted = _wanted(recipe)
        except ConfigError as error:
            yield Finding("model", "bad", str(error))
    folders = sorted({str(_existing(path)) for path in storage})
    nodes, faults = survey(storage=folders, inputs=list(inputs), model=model)
    yield checks.check_nodes(nodes)
    yield checks.check_versions(nodes, versions())
    yield checks.check_devices(nodes)
    yield checks.check_object_store(nodes, wanted, may_grow)
    yield checks.check_ports(nodes)
    for folder in folders:
        yield checks.check_storage(folder, nodes, faults.get(folder, ""))
    if inputs:
        yield checks.check_inputs(nodes, inputs)
    if model:
        yield checks.check_model(model, nodes)
    if wanted:
        yield from checks.check_wanted(wanted, nodes, may_grow)


def print_finding(finding: Finding, console: Console) -> None:
    """A line: green, or with the remedy."""
    text = f"{MARKS[finding.level]} {finding.check + ':':14}{escape(finding.text)}"
    if finding.remedy:
        text += f" [bold]→[/] {escape(finding.remedy)}"
    console.print(text, soft_wrap=True, highlight=False)


def _wanted(recipe: Recipe) -> Wanted:
    config = recipe.config
    on_gpu = config.num_gpus_per_learner > 0 or config.num_gpus_per_env_runner > 0
    bytes_each = 2 if resolve_dtype(config.dtype, on_gpu) == "bfloat16" else 4
    parameters, _ = count_parameters(config.model_name)
    return Wanted(
        bundles=actor_bundles(config),
        weight_bytes=parameters * bytes_each,
        runner_bytes=runner_bytes(parameters, bytes_each, config),
        learner_bytes=learner_bytes(parameters, bytes_each, config),
        runner_gpus=config.num_gpus_per_env_runner,
        learner_gpus=config.num_gpus_per_learner,
        num_runners=config.num_env_runners,
        num_learners=config.num_learners,
        gpu_memory_utilization=config.gpu_memory_utilization,
        through_object_store=config.weight_transfer == "object_store",
    )


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path

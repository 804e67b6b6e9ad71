"""The whole examination: the cluster, and what a recipe wants of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from starec_ray.cluster.connection import start_ray
from starec_ray.cluster.memory import learner_bytes, runner_bytes
from starec_ray.cluster.placement import actor_bundles, fits_beside_an_engine
from starec_ray.config.recipe import Recipe
from starec_ray.data.store import MANIFEST, TABLES
from starec_ray.doctor import checks
from starec_ray.doctor.checks import Finding, Wanted
from starec_ray.doctor.probe import file_hash, versions
from starec_ray.doctor.survey import survey
from starec_ray.errors import ConfigError
from starec_ray.models.parameters import count_parameters, without_weights
from starec_ray.models.resolve import VALUE_BYTES, dtype_of, resolve_model
from starec_ray.training.traces import BUNDLED_TRACES, trace_files

MARKS = {"good": "[green]✓[/]", "warning": "[yellow]![/]", "bad": "[red]✗[/]"}


def examine(
    recipe: Recipe | None,
    storage: Sequence[Path],
    *,
    data: Path | None = None,
    model: str = "",
    may_grow: bool,
) -> Iterator[Finding]:
    """Findings, as they are made; joins the cluster that RAY_ADDRESS names, else starts a Ray.

    Args:
        recipe: what is to be run; None examines the cluster alone.
        storage: folders that every node is to see; of one that isn't there yet, the nearest
            folder above it.
        data, model: what nodes are to see where there is no recipe.
        may_grow: what the cluster lacks is a warning: its autoscaler may bring it.
    """
    start_ray(recipe.run.ray if recipe else {})
    inputs, wanted = _hashes(_files(data)) if data else {}, None
    if recipe:
        model = recipe.config.model_name
        try:
            recipe.config.check_inputs()
            inputs = _hashes(
                [*_files(Path(recipe.config.data_path)), *trace_files(recipe.config.traces)]
            )
        except ConfigError as error:
            yield Finding("data", "bad", str(error))
    try:
        model = resolve_model(model) if model else ""
        wanted = _wanted(recipe) if recipe else None
    except ConfigError as error:
        model = ""
        yield Finding("model", "bad", str(error))
    folders = sorted({str(_existing(path)) for path in storage})
    nodes, faults = survey(storage=folders, inputs=list(inputs), model=model)
    yield checks.check_nodes(nodes)
    more_to_come = may_grow and wanted is not None and checks.is_short(wanted, nodes)
    for finding in (
        checks.check_versions(nodes, versions()),
        checks.check_devices(nodes),
        checks.check_object_store(nodes, wanted, may_grow),
        checks.check_ports(nodes),
        *(checks.check_storage(folder, nodes, faults.get(folder, "")) for folder in folders),
        *([checks.check_inputs(nodes, inputs)] if inputs else []),
        *([checks.check_model(model, nodes)] if model else []),
    ):
        yield checks.of_those_up(finding) if more_to_come else finding
    if wanted:
        yield from checks.check_wanted(wanted, nodes, may_grow)


def print_finding(finding: Finding, console: Console) -> None:
    """A line: green, or with the remedy."""
    text = f"{MARKS[finding.level]} {finding.check + ':':14}{escape(finding.text)}"
    if finding.remedy:
        text += f" [bold]→[/] {escape(finding.remedy)}"
    console.print(text, soft_wrap=True, highlight=False)


def _files(data: Path) -> list[Path]:
    """Those of a prepared data folder."""
    return [data / MANIFEST, *(data / f"{name}.parquet" for name in TABLES)]


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    """Path → SHA-256; "" of a file that isn't there."""
    # The bundled traces come with the program, wherever that lies on a node.
    paths = [str(path.absolute()) for path in files if path != BUNDLED_TRACES]
    return {path: file_hash(path) for path in paths}


def _wanted(recipe: Recipe) -> Wanted:
    config = recipe.config
    bytes_each, name = VALUE_BYTES[dtype_of(config)], config.model_name
    parameters, _ = count_parameters(name, without_weights(name))
    return Wanted(
        bundles=actor_bundles(config),
        weight_bytes=parameters * bytes_each,
        runner_bytes=runner_bytes(parameters, bytes_each, config),
        learner_bytes=learner_bytes(parameters, bytes_each, config),
        runner_gpus=config.num_gpus_per_env_runner,
        learner_gpus=config.num_gpus_per_learner,
        num_runners=config.num_env_runners,
        num_learners=config.num_learners,
        shares_gpus=fits_beside_an_engine(config),
        gpu_memory_utilization=config.gpu_memory_utilization,
        through_object_store=config.weight_transfer == "object_store",
    )


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path

"""What a module doesn't import: seconds of a process's start, and the floors of the house."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Rooms from the ground up: a module imports from lower floors and from its own room alone.
FLOORS = [
    {"errors", "schemas", "progress", "metrics", "rewards"},
    {"files", "heartbeat"},
    {"data", "plotting"},
    {"agent", "credit"},
    {"cluster"},
    {"checkpoints", "run_dir"},
    {"models"},
    {"actors", "learners"},
    {"training"},
    {"rollouts", "config", "distill"},
    {"evaluation", "rllib_algorithm"},
    {"algorithm"},
    {"jobs"},
    {"doctor", "tune"},
    {"cli"},
]
# RLlib's way: a configuration that is made by itself knows which algorithm it builds.
ALLOWED = ["starec_ray/config/starec_config.py imports starec_ray.algorithm"]


def modules() -> list[Path]:
    return [
        path.relative_to(ROOT)
        for package in ("starec_ray", "actors", "learners", "tune")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py" or len(path.relative_to(ROOT).parts) > 2
    ]


def room(dotted: str) -> str:
    parts = dotted.removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if parts[0] == "starec_ray" else parts[0]


def imports(path: Path) -> set[str]:
    """The project's modules that one names anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "starec_ray":
            found |= {f"starec_ray.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    ours = {"starec_ray", "actors", "learners", "tune"}
    return {name for name in found if name.partition(".")[0] in ours}


def test_every_room_stands_on_one_floor():
    named = [name for floor in FLOORS for name in floor]
    assert len(named) == len(set(named))
    assert set(named) == {room(str(path)) for path in modules()}


def test_no_arrow_runs_back_up():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    upward = [
        f"{path} imports {name}"
        for path in modules()
        for name in imports(path)
        if room(name) != room(str(path)) and floor[room(name)] >= floor[room(str(path))]
    ]
    assert upward == ALLOWED


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("starec_ray.data.prepare, starec_ray.agent.agent, starec_ray.metrics", "ray, torch, vllm"),
        ("actors.reward_actor", "ray, torch, transformers"),
        ("starec_ray.cli", "ray, torch"),
        ("starec_ray.config.recipe, starec_ray.algorithm", "learners.learner, transformers, vllm"),
    ],
)
def test_a_process_starts_without(modules, without):
    program = (
        f"import sys, {modules}\n"
        f"sys.exit(sorted({set(without.split(', '))!r} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

"""What an actor said last: the end of its log, from whichever node it runs on."""

from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HEADING = "The last lines of the log of"
LINES = 12
LOGS_SHOWN = 4  # of many actors with one fault, or that wait for one of them
READ_BYTES = 20_000
TIMEOUT_S = 10.0


def last_lines(name: str, actor: Any) -> str:
    """The last lines of an actor's log as the end of an error's message; "" if it can't be had.

    An actor that hangs has one too: another process on its node reads it.
    """
    return last_lines_of(name, ray._private.state.actors(actor._actor_id.hex()))


def last_lines_of(name: str, found: dict[str, Any]) -> str:
    """As `last_lines`, of an actor by Ray's entry for it."""
    node, pid = found.get("Address", {}).get("NodeID"), found.get("Pid")
    if not node or not pid:
        return ""
    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    ref = _read.options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote(pid)
    ready, _ = ray.wait([ref], timeout=TIMEOUT_S)
    try:
        text = ray.get(ready[0]) if ready else ""
    except ray.exceptions.RayError:  # its node is gone too
        text = ""
    return f"\n{HEADING} {name} (process {pid}):\n{text}" if text else ""


@ray.remote
def _read(pid: int) -> str:
    """The end of what a process wrote, standard error last."""
    node: Any = ray._private.worker._global_node
    folder = Path(node.get_session_dir_path()) / "logs"
    lines: list[str] = []
    for kind in ("out", "err"):
        for path in folder.glob(f"worker-*-{pid}.{kind}"):
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - READ_BYTES))
                text = file.read().decode(errors="replace")
            said = [line for line in text.splitlines() if line.strip()]
            # Ray's own marks of who works in the process.
            lines += [line for line in said if not line.startswith(":")][-LINES:]
    return "\n".join(lines)

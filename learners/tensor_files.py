"""Many tensors as safetensors files of a few GiB: written as they come, read by name."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from starec_ray.errors import ConfigError

FILE_BYTES = 4 * 2**30
CPU = torch.device("cpu")


class TensorWriter:
    """Collects tensors and writes them in files `FILE_NAME-00001.safetensors`, …

    Args:
        folder: made with the first file.
        file_name: of the files; writers of one folder need different ones.
    """

    def __init__(self, folder: Path, file_name: str) -> None:
        self.folder = folder
        self._file_name = file_name
        self.total_bytes = 0
        self.file_of: dict[str, str] = {}  # tensor → file
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._files = 0

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._held and self._held_bytes + size > FILE_BYTES:
            self.write()
        # A copy: DeepSpeed's parameters are views of one flat buffer.
        self._held[name] = tensor.to("cpu", copy=True).contiguous()
        self._held_bytes += size
        self.total_bytes += size

    def write(self) -> None:
        """Writes what is held; to be called at the end."""
        if not self._held:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        file = f"{self._file_name}-{self._files:05d}.safetensors"
        save_file(self._held, self.folder / file, metadata={"format": "pt"})
        (self.folder / file).chmod(0o644)  # a server may run as another user
        self.file_of |= dict.fromkeys(self._held, file)
        self._held, self._held_bytes = {}, 0


class TensorReader:
    """Reads single tensors of all safetensors files in a folder, whoever wrote them.

    Raises:
        ConfigError: two of them hold the same tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                names = file.keys()
            if twice := sorted(self._file_of.keys() & names):
                other = self._file_of[twice[0]].name
                raise ConfigError(f"{path} and {other} both hold {twice[0]}: one doesn't belong.")
            self._file_of |= dict.fromkeys(names, path)

    @property
    def names(self) -> list[str]:
        return sorted(self._file_of)

    def read(self, name: str, device: torch.device = CPU) -> Tensor:
        """
        Raises:
            KeyError: no file has it.
        """
        with safe_open(self._file_of[name], framework="pt", device=str(device)) as file:
            return file.get_tensor(name)

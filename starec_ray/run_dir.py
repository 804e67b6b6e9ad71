"""A run's folder: its configuration, metrics, rollouts to read, checkpoints and models.

config.yaml                      the resolved configuration
metrics.jsonl                    one line an iteration
failures.jsonl                   a line for each actor that was lost, and one when it was back
rollouts/iteration-00001.parquet what was asked, answered and rewarded, as text
tensorboard/  checkpoints/  anchored_model/  model/
best_epoch/                      of the anchor so far, while that lasts
"""

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from starec_ray.cluster.failures import FailureEvent
from starec_ray.errors import ConfigError, DataError
from starec_ray.files import (
    append_line,
    failing_for,
    local_path,
    locked,
    read_json_lines,
    read_yaml,
    written_whole,
)
from starec_ray.schemas import READABLE_ROLLOUTS

EVALUATION = "evaluation.json"
LAST_BATCH = "last_batch.parquet"
BEST_EPOCH = "best_epoch"  # of the anchor, while that lasts
REMEDY = "Make room, or give another folder."
# What stands at the end.
RESULTS = (EVALUATION, "evaluation_cases.parquet", "policies.png", "training.png")


class RunDir:
    """The folder of one run; made if it isn't there, unless `create` is False.

    Reading needs nothing else. Whoever trains into it holds `lock()` meanwhile.

    Raises:
        ConfigError: if it isn't there and `create` is False, or is a file, or a store's address.
        StorageError: if it can't be made.
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        # Ray's actors and pyarrow have other working folders.
        self.path = local_path(path).absolute()
        if create:
            with failing_for(self.path, REMEDY):
                if not self.path.exists():
                    self.path.mkdir(parents=True)
        if not self.path.is_dir():
            raise ConfigError(f"{self.path} is no run folder: give the folder that a run wrote.")
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.failures = self.path / "failures.jsonl"
        self.rollouts = self.path / "rollouts"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.anchored_model = self.path / "anchored_model"
        self.best_epoch = self.path / BEST_EPOCH
        self._writer: Any = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing here until the block ends, or this process does, unless
        the storage has no locks.

        Raises:
            ConfigError: naming the process that holds the folder.
            StorageError: nothing can be written here.
        """
        with failing_for(self.path, REMEDY):
            # Unbuffered: what a full disk refuses would be tried again as it is closed.
            file = open(self.path / "lock", "ab+", buffering=0)  # noqa: SIM115 - closed below
        with file, ExitStack() as lock:
            try:
                lock.enter_context(locked(file))
            except BlockingIOError:
                holder = ""
                with suppress(OSError):  # SMB lets nobody read what is locked
                    file.seek(0)
                    holder = file.read().decode().strip()
                raise ConfigError(
                    f"{self.path} is in use by process {holder or 'unknown'}: wait for it, end it, "
                    "or give another run folder."
                ) from None
            with failing_for(self.path, REMEDY):
                file.truncate(0)
                file.write(f"{os.getpid()}\n".encode())
            yield

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration (plain YAML types) to config.yaml."""
        with written_whole(self.config) as aside:
            aside.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def read_config(self) -> dict[str, Any]:
        """config.yaml; ConfigError if there is none or it isn't a mapping."""
        config = read_yaml(self.config, f"{self.config} does not exist: {self.path} is no run.")
        if not isinstance(config, dict):
            raise ConfigError(f"{self.config} holds no mapping of settings.")
        run = config.get("run")
        if isinstance(run, dict) and run.get("mode") == "max":  # earlier versions wrote it
            del run["mode"]
        return config

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, on the disk when this returns, and to TensorBoard.

        `line` has an "iteration" and may nest; NumPy scalars become numbers, what is not finite
        becomes null. In TensorBoard nested names are joined by "/".
        """
        plain = _plain(line)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # loads torch

            # What a run that this one resumes wrote from here on is hidden by purge_step.
            self._writer = SummaryWriter(str(self.tensorboard), purge_step=plain["iteration"])
        append_line(self.metrics, plain)
        for name, value in flatten(plain).items():
            if isinstance(value, int | float) and name != "iteration":
                self._writer.add_scalar(name, value, plain["iteration"])
        self._writer.flush()

    def append_failure(self, event: FailureEvent) -> None:
        """Append a line to failures.jsonl, on the disk when this returns."""
        append_line(self.failures, asdict(event))

    def read_failures(self) -> list[dict[str, Any]]:
        """The lines of failures.jsonl, the fields of `FailureEvent`."""
        return [line for _, line in read_json_lines(self.failures)]

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a crash cut off is left out."""
        return [line for _, line in read_json_lines(self.metrics)]

    def write_rollouts(self, iteration: int, rollouts: pa.Table, titles: Mapping[str, str]) -> None:
        """Write what a person can read of an iteration's rollouts, schema READABLE_ROLLOUTS.

        Args:
            rollouts: as `rollouts.collect` gives them: columns of ROLLOUTS, with reward, advantage,
                target_rank (1-based) and chosen (an item id) beside them; the last two are null
                where there is none.
            titles: item id to title.
        """
        columns: dict[str, Any] = {
            "iteration": [iteration] * rollouts.num_rows,
            "ranking": [
                None if ranking is None else [titles[item_id] for item_id in ranking]
                for ranking in rollouts["ranking"].to_pylist()
            ],
            "chosen": [
                None if item_id is None else titles[item_id]
                for item_id in rollouts["chosen"].to_pylist()
            ],
        }
        table = pa.table(
            [columns[n] if n in columns else rollouts[n] for n in READABLE_ROLLOUTS.names],
            schema=READABLE_ROLLOUTS,
        )
        self.rollouts.mkdir(exist_ok=True)
        with written_whole(self._rollouts_file(iteration)) as aside:
            pq.write_table(table, aside, compression="zstd")

    def write_batch(self, sequences: pa.Table) -> Path:
        """Keep a batch (schema SEQUENCES) for whoever looks for a fault in it."""
        path = self.path / LAST_BATCH
        with written_whole(path) as aside:
            pq.write_table(sequences, aside, compression="zstd")
        return path

    def rollout_iterations(self) -> list[int]:
        """The iterations whose rollouts are kept, oldest first."""
        names = (path.name for path in self.rollouts.glob("iteration-*.parquet"))
        matches = (re.fullmatch(r"iteration-(\d+)\.parquet", name) for name in names)
        return sorted(int(match[1]) for match in matches if match)

    def read_rollouts(self, iteration: int | None = None) -> pa.Table:
        """An iteration's rollouts, the last one's by default, schema READABLE_ROLLOUTS.

        Raises:
            DataError: if there are none.
        """
        kept = self.rollout_iterations()
        if not kept:
            raise DataError(f"{self.rollouts} holds no rollouts yet.")
        if iteration is None:
            iteration = kept[-1]
        if iteration not in kept:
            raise DataError(
                f"{self.rollouts} holds no iteration {iteration}; there are {len(kept)}, "
                f"from {kept[0]} to {kept[-1]}."
            )
        return pq.read_table(self._rollouts_file(iteration), schema=READABLE_ROLLOUTS)

    def holds(self) -> list[str]:
        """The names of what a run wrote here."""
        return [path.name for path in self._written() if path.exists()]

    def clear(self) -> None:
        """Removes what a run writes here, and nothing else: of a link to another disk, which it
        writes through, what it has written there.

        Raises:
            StorageError: something can't be removed.
        """
        through = {
            self.rollouts: "iteration-*",
            self.tensorboard: "events.out.tfevents.*",
            self.checkpoints: "iteration-*",
        }
        with failing_for(self.path, REMEDY):
            for path in self._written():
                if path.is_symlink() and path.is_dir() and path in through:
                    for inside in list(path.glob(through[path])):
                        _remove(inside)
                else:
                    _remove(path)

    def would_lose(self, path: str | Path) -> bool:
        """Whether it lies in what `clear` removes."""
        found = Path(path).resolve()
        return any(found.is_relative_to(own.resolve()) for own in self._written())

    def rewind(self, iteration: int) -> None:
        """Drop what came after an iteration, as a run goes on from there: later metrics and
        rollouts, the trained model and its evaluation."""
        self.close()  # the next TensorBoard file hides what it writes again
        kept = [
            text for text, line in read_json_lines(self.metrics) if line["iteration"] <= iteration
        ]
        with written_whole(self.metrics) as aside:
            aside.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8")
        for later in self.rollout_iterations():
            if later > iteration:
                self._rollouts_file(later).unlink()
        shutil.rmtree(self.model, ignore_errors=True)
        for name in RESULTS:
            (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        """End the TensorBoard file; what a full disk has no room for is in metrics.jsonl too."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with suppress(OSError):  # it would hide what ended the run
                writer.close()

    def _written(self) -> list[Path]:
        results = (self.path / name for name in RESULTS)
        models = (self.model, self.anchored_model)
        return [
            self.config,
            self.metrics,
            self.failures,
            self.rollouts,
            self.tensorboard,
            self.checkpoints,
            self.path / LAST_BATCH,
            self.best_epoch,
            *models,
            *results,
        ]

    def _rollouts_file(self, iteration: int) -> Path:
        return self.rollouts / f"iteration-{iteration:05d}.parquet"


def _remove(path: Path) -> None:
    """A file, a folder with all in it, or a link without what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flatten(line: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by "/": {"a": {"b": 1}} → {"a/b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _plain(value: Any) -> Any:
    """`value` in JSON's types."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

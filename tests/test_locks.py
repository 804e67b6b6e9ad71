"""One process at a time writes what is locked, wherever that lies."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from starec_ray import files
from starec_ray.data.store import clear_abandoned
from starec_ray.distill.journal import Journal
from starec_ray.errors import ConfigError
from starec_ray.files import locked
from starec_ray.run_dir import RunDir

# Lustre without `-o flock`; NFS without its lock service; other network file systems.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
LOCKS: list[Callable] = [
    lambda folder: RunDir(folder).lock(),
    lambda folder: Journal(folder / "journal.jsonl", "teacher"),
]


@contextmanager
def opened(path: Path) -> Iterator[bool]:
    with open(path, "ab") as file, locked(file) as alone:
        yield alone


def saying(error: int) -> Callable:
    """A flock that says so."""

    def flock(file: object, operation: int) -> None:
        raise OSError(error, "by this storage")

    return flock


def test_a_lock_is_held_until_its_block_ends(tmp_path):
    with open(tmp_path / "file", "ab") as file:
        with locked(file) as alone:
            assert alone
            with pytest.raises(BlockingIOError), opened(tmp_path / "file"):
                pass
        with opened(tmp_path / "file") as alone:
            assert alone


@pytest.mark.parametrize("error", WITHOUT_LOCKS)
@pytest.mark.parametrize("lock", LOCKS)
def test_where_the_storage_has_no_locks_it_goes_on_without(tmp_path, monkeypatch, lock, error):
    monkeypatch.setattr(files.fcntl, "flock", saying(error))
    with opened(tmp_path / "file") as alone:
        assert not alone
    with lock(tmp_path), lock(tmp_path):
        pass


@pytest.mark.parametrize("error", WITHOUT_LOCKS)
def test_where_the_storage_has_no_locks_nothing_counts_as_abandoned(tmp_path, monkeypatch, error):
    aside = tmp_path / ".out.12345678.partial"
    aside.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files.fcntl, "flock", saying(error))
        clear_abandoned(tmp_path / "out")
        assert aside.is_dir()
    clear_abandoned(tmp_path / "out")
    assert not aside.exists()


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EACCES])  # the latter on SMB
@pytest.mark.parametrize("lock", LOCKS)
def test_what_another_has_is_refused_however_that_is_said(tmp_path, monkeypatch, lock, error):
    monkeypatch.setattr(files.fcntl, "flock", saying(error))
    with pytest.raises(ConfigError, match="in use by"), lock(tmp_path):
        pass

"""Copies of checkpoints in a store: those that are kept, whole, and brought back."""

import contextlib
import errno
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import fsspec
import pytest

from starec_ray.checkpoints import store
from starec_ray.checkpoints.checkpoints import Checkpoints
from starec_ray.checkpoints.files import MANIFEST, fault
from starec_ray.checkpoints.store import CheckpointStore
from starec_ray.errors import ConfigError, DeadlineError, StorageError
from starec_ray.heartbeat import Heartbeat
from starec_ray.progress import phase
from tests.checkpoints.test_checkpoints import OURS, names, save, truncated


@pytest.fixture(params=["file", "memory"])
def address(request, tmp_path):
    """Of a store that pyarrow knows, and of one that only fsspec does."""
    if request.param == "file":
        return f"file://{tmp_path}/a store"
    fsspec.filesystem("memory").store.clear()
    return "memory://runs/first"


def store_at(address):
    return CheckpointStore(address, timeout_s=30.0)


@pytest.fixture
def told():
    return []


@pytest.fixture
def checkpoints(address, tmp_path, told):
    return Checkpoints(tmp_path / "here", 2, tell=told.append, store=store_at(address))


def test_the_store_has_those_that_are_kept_and_a_run_elsewhere_goes_on_from_them(
    address, checkpoints, tmp_path, told
):
    for iteration, score in enumerate([0.9, 0.1, 0.2, 0.3], start=1):
        save(checkpoints, iteration, score)
    kept = ["iteration-00001", "iteration-00003", "iteration-00004"]
    assert store_at(address).names() == names(checkpoints) == kept
    elsewhere = Checkpoints(tmp_path / "elsewhere", 2, store=store_at(address))
    elsewhere.bring()
    assert names(elsewhere) == kept and elsewhere.best() == elsewhere.folder / kept[0]
    for name in kept:
        for path in (checkpoints.folder / name).rglob("*"):
            copy = elsewhere.folder / path.relative_to(checkpoints.folder)
            assert copy.is_dir() if path.is_dir() else copy.read_bytes() == path.read_bytes()
    assert not told
    store_at(address).clear()
    assert store_at(address).names() == []


def test_one_that_was_damaged_here_is_brought_back_from_the_store(checkpoints, told):
    for iteration in (1, 2):
        save(checkpoints, iteration)
    newest = checkpoints.folder / "iteration-00002"
    truncated(newest)
    resumed = Checkpoints(checkpoints.folder, 2, tell=told.append, store=checkpoints.store)
    resumed.bring()
    assert not fault(newest) and resumed.newest() == newest
    assert names(resumed) == ["iteration-00001", "iteration-00002"] and not told


def test_going_back_to_an_earlier_one_lets_those_after_it_go_here_and_there(address, checkpoints):
    for iteration in (1, 2, 3):
        save(checkpoints, iteration)
    with pytest.raises(
        ConfigError, match=r"no checkpoint iteration-00001; there are: iter.*-00002"
    ):
        checkpoints.go_back_to("iteration-00001")
    checkpoints.go_back_to("iteration-00002")
    assert store_at(address).names() == names(checkpoints) == ["iteration-00002"]
    truncated(checkpoints.folder / "iteration-00002")
    with pytest.raises(ConfigError, match=r"instead of 1000. Take another one"):
        checkpoints.go_back_to("iteration-00002")


def test_those_here_are_not_replaced_by_those_in_the_store(address, checkpoints, tmp_path):
    save(checkpoints, 1)
    elsewhere = Checkpoints(tmp_path / "elsewhere", 2)
    save(elsewhere, 2)
    elsewhere.store = store_at(address)
    elsewhere.bring()
    assert names(elsewhere) == ["iteration-00002"]


def test_what_is_missing_here_comes_after_a_fetch_that_was_cut_off(
    address, checkpoints, tmp_path, monkeypatch
):
    for iteration, score in enumerate([0.9, 0.1, 0.2, 0.3], start=1):
        save(checkpoints, iteration, score)
    elsewhere = Checkpoints(tmp_path / "elsewhere", 2, store=store_at(address))
    get = CheckpointStore.get
    with monkeypatch.context() as cut, pytest.raises(DeadlineError):

        def one_alone(self: CheckpointStore, name: str, folder: Path) -> None:
            if names(elsewhere):
                raise DeadlineError("no answer")
            get(self, name, folder)

        cut.setattr(CheckpointStore, "get", one_alone)
        elsewhere.bring()
    assert names(elsewhere) == ["iteration-00004"]
    elsewhere.bring()
    assert names(elsewhere) == names(checkpoints) and elsewhere.best()


def test_a_folder_that_fell_behind_goes_on_from_where_another_machine_was(
    address, checkpoints, tmp_path
):
    save(checkpoints, 1)
    elsewhere = Checkpoints(tmp_path / "elsewhere", 2, store=store_at(address))
    elsewhere.bring()
    for iteration in (2, 3, 4):
        save(elsewhere, iteration)
    checkpoints.bring()
    assert checkpoints.newest() == checkpoints.folder / "iteration-00004"
    save(checkpoints, 5)
    kept = ["iteration-00004", "iteration-00005"]
    assert names(checkpoints) == store_at(address).names() == kept


def test_a_copy_that_was_cut_off_is_none_and_is_made_again(checkpoints, address, told, monkeypatch):
    save(checkpoints, 1)
    copy = store._copy
    written = []

    def failing(source, target, heartbeat):
        if len(written) == 1:
            raise OSError("the network is gone")
        written.append(source.name)
        copy(source, target, heartbeat)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_copy", failing)
        save(checkpoints, 2)
    assert len(told) == 1 and "the network is gone" in told[0] and address in told[0]
    assert store_at(address).names() == ["iteration-00001"]
    assert names(checkpoints) == ["iteration-00001", "iteration-00002"]
    save(checkpoints, 3)
    assert store_at(address).names() == ["iteration-00002", "iteration-00003"]


def test_what_could_not_be_removed_goes_with_the_next_one(checkpoints, address, told, monkeypatch):
    for iteration in (1, 2):
        save(checkpoints, iteration)

    def failing(self, name):
        raise OSError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(store.CheckpointStore, "remove", failing)
        save(checkpoints, 3)
        with pytest.raises(OSError, match="the network is gone"):
            checkpoints.go_back_to("iteration-00002")
    assert len(store_at(address).names()) == 3 and len(told) == 1
    assert names(checkpoints) == ["iteration-00002", "iteration-00003"]  # as they were
    save(checkpoints, 4)
    assert store_at(address).names() == names(checkpoints) == ["iteration-00003", "iteration-00004"]


def test_the_store_keeps_what_this_folder_never_let_go(address, checkpoints, tmp_path):
    for iteration in (1, 2):
        save(checkpoints, iteration)
    elsewhere = Checkpoints(tmp_path / "elsewhere", 2, store=store_at(address))
    elsewhere.store.get("iteration-00002", elsewhere.folder)  # bringing ended there
    save(elsewhere, 3)
    kept = ["iteration-00001", "iteration-00002", "iteration-00003"]
    assert store_at(address).names() == kept and names(elsewhere) == kept[1:]
    shutil.rmtree(elsewhere.folder / kept[1])  # by hand, for room
    save(elsewhere, 4)
    assert store_at(address).names() == [*kept, "iteration-00004"]


def test_going_back_lets_those_go_that_the_store_alone_has(address, checkpoints):
    for iteration in (1, 2):
        save(checkpoints, iteration)
    shutil.rmtree(checkpoints.folder / "iteration-00002")
    checkpoints.go_back_to("iteration-00001")
    assert store_at(address).names() == ["iteration-00001"]


def test_one_that_is_written_again_takes_the_place_of_its_copy(address, checkpoints, tmp_path):
    save(checkpoints, 1, 0.5)
    save(checkpoints, 1, 0.7)
    store_at(address).get("iteration-00001", tmp_path)
    written = (checkpoints.folder / "iteration-00001" / MANIFEST).read_text()
    assert (tmp_path / "iteration-00001" / MANIFEST).read_text() == written


def test_a_copy_holds_nothing_of_the_one_whose_place_it_took(address, checkpoints, tmp_path):
    save(checkpoints, 1, 0.5)
    save(checkpoints, 1)  # without a score
    store_at(address).get("iteration-00001", tmp_path)
    assert not fault(tmp_path / "iteration-00001")


@pytest.mark.parametrize("address", ["nowhere://bucket/run", "runs/first", "s3:/bucket"])
def test_what_is_no_store_is_named(address):
    with pytest.raises(ConfigError, match=r"run\.checkpoint_storage '.*' can't be used"):
        store_at(address)


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """The address of a store in S3 whose server takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        options = {"endpoint_override": endpoint, "region": "us-east-1"}
        yield f"s3://key:secret@bucket/run?{urlencode(options)}"


def test_a_store_that_gives_no_answer_is_told_before_anything_starts():
    with (
        silent_server() as address,
        pytest.raises(ConfigError, match=r"can't be used: listing s3.* got no further for 2 s"),
    ):
        CheckpointStore(address, timeout_s=2.0)


def test_a_store_that_falls_silent_costs_copies_and_not_the_run(
    checkpoints, address, told, tmp_path, monkeypatch
):
    save(checkpoints, 1)
    silence, woken = threading.Event(), threading.Event()

    def hanging(source, target, heartbeat):
        target.write(b"the first half")
        silence.wait(60.0)
        woken.set()
        heartbeat()

    with monkeypatch.context() as patch:
        patch.setattr(store, "_copy", hanging)
        patch.setattr(checkpoints.store._in_time, "timeout_s", 2.0)
        save(checkpoints, 2)
    assert len(told) == 1
    assert "copying iteration-00002 to" in told[0] and "no further for 2 s" in told[0]
    assert "storage_timeout_s" in told[0]
    save(checkpoints, 3)  # nothing is begun beside what may wake at any time
    assert len(told) == 2 and "iteration-00002" in told[1] and "hangs still" in told[1]

    silence.set()
    woken.wait(60.0)
    [(_, hung)] = [checkpoints.store._in_time._hanging]
    with pytest.raises(DeadlineError, match="nobody waits"):
        hung.result(60.0)
    save(checkpoints, 4)
    assert store_at(address).names() == names(checkpoints) == ["iteration-00003", "iteration-00004"]
    for name in ("iteration-00003", "iteration-00004"):
        store_at(address).get(name, tmp_path)
        assert not fault(tmp_path / name)


def of_run(tmp_path, address, told, *, group_size):
    """Of a run that differs from others in this."""
    identity = OURS | {"settings": {"training.group_size": group_size}}
    folder = tmp_path / f"groups of {group_size}"
    return Checkpoints(folder, 2, identity, told.append, store_at(address)), identity


def test_two_runs_with_one_store_do_not_take_each_others_copies_away(address, tmp_path, told):
    ours, identity = of_run(tmp_path, address, told, group_size=8)
    theirs, their_identity = of_run(tmp_path, address, told, group_size=4)
    for iteration in (1, 2, 3):  # both began while it was empty
        save(ours, iteration, identity=identity)
        save(theirs, iteration, identity=their_identity)
    assert len(told) == 3 and address in told[0]
    assert "is another run's (training.group_size was 8 and is 4)" in told[0]
    kept = ["iteration-00002", "iteration-00003"]
    assert store_at(address).names() == names(ours) == names(theirs) == kept
    with pytest.raises(ConfigError, match="is another run's"):
        theirs.go_back_to("iteration-00002")
    resumed, _ = of_run(tmp_path / "elsewhere", address, told, group_size=8)
    resumed.folder.parent.mkdir()
    resumed.bring()
    assert names(resumed) == [path.name for path in resumed.sound()] == kept


def test_a_run_does_not_go_on_with_the_store_of_another(address, tmp_path, told):
    theirs, their_identity = of_run(tmp_path, address, told, group_size=4)
    theirs.claim_store()
    ours, _ = of_run(tmp_path, address, told, group_size=8)
    with pytest.raises(ConfigError, match=r"was 4 and is 8\).* run\.checkpoint_storage of its own"):
        ours.bring()
    save(theirs, 1, identity=their_identity)
    with pytest.raises(ConfigError, match=r"was 4 and is 8\)"):
        ours.bring()
    assert not ours.folder.exists() and not told


def test_the_store_tells_what_its_newest_copies_were_made_with(address, tmp_path, told):
    """A run whose KL is turned off on the way keeps no anchor from there on."""

    def goes_on(folder, **settings):
        identity = OURS | {
            "settings": {f"training.{key}": value for key, value in settings.items()}
        }
        return Checkpoints(tmp_path / folder, 2, identity, told.append, store_at(address)), identity

    first, identity = goes_on("here", kl_coeff=0.01)
    first.claim_store()
    save(first, 1, identity=identity)
    for kl_coeff, iteration in ((0.1, 2), (0.0, 3)):
        later, identity = goes_on("here", kl_coeff=kl_coeff)
        save(later, iteration, identity=identity)
    for kl_coeff in (0.0, 0.1):
        elsewhere, _ = goes_on(f"with {kl_coeff}", kl_coeff=kl_coeff)
        refused = pytest.raises(ConfigError, match=r"training\.kl_coeff was 0\.0 and is 0\.1")
        with refused if kl_coeff else contextlib.nullcontext():
            elsewhere.bring()
    assert not told


def test_a_store_that_tells_of_no_run_is_named(tmp_path, told):
    address = f"file://{tmp_path}/store"
    ours, _ = of_run(tmp_path, address, told, group_size=8)
    ours.claim_store()
    (tmp_path / "store" / store.OWNER).write_text("{")  # a crash came between
    with pytest.raises(ConfigError, match=r"run\.json of file.* doesn't tell whose it is"):
        ours.bring()


def test_what_is_brought_to_a_full_disk_leaves_nothing_behind(
    checkpoints, address, tmp_path, monkeypatch
):
    save(checkpoints, 1)
    elsewhere = Checkpoints(tmp_path / "elsewhere", 2, store=store_at(address))

    def full(source, target, heartbeat):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "_copy", full)
    with pytest.raises(
        StorageError, match=r"elsewhere: the disk is full.*make room, then --resume"
    ):
        elsewhere.bring()
    assert not list(elsewhere.folder.iterdir())


def test_a_store_that_fails_is_told_with_what_was_asked_of_it(checkpoints, tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError("Access Denied")

    save(checkpoints, 1)
    monkeypatch.setattr(CheckpointStore, "_remove", refuse)
    with pytest.raises(StorageError, match=r"removing iteration-00001 from .* failed: Access"):
        checkpoints.store.clear()


def test_a_key_that_leads_out_of_its_checkpoint_is_refused(checkpoints, tmp_path):
    copies = checkpoints.store
    places = [f"{copies._root}/iteration-00001/../../evil"]
    with (
        phase("bringing", 1) as progress,
        pytest.raises(ConfigError, match="is no file of a checkpoint"),
    ):
        copies._get("iteration-00001", places, tmp_path / "a" / "b", Heartbeat(), progress)
    assert not (tmp_path / "a").exists()

"""What the other tests of these parts leave open."""

import errno
import shutil
import time

import pytest

from starec_ray.checkpoints.checkpoints import Checkpoints, is_full
from starec_ray.checkpoints.files import fault
from starec_ray.checkpoints.heartbeat import Heartbeat, HeartbeatDeadline
from starec_ray.errors import ConfigError
from starec_ray.progress import phase
from tests.checkpoints.test_checkpoints import OURS, save
from tests.checkpoints.test_store import address, checkpoints, store_at, told


def test_work_that_gets_further_may_take_longer_than_the_deadline():
    def work(heartbeat: Heartbeat) -> str:
        for _ in range(5):
            time.sleep(0.1)
            heartbeat()
        return "done"

    assert HeartbeatDeadline(0.3, "")("copying", work) == "done"


def test_a_copy_holds_nothing_of_the_one_whose_place_it_took(address, checkpoints, tmp_path):
    save(checkpoints, 1, 0.5)
    save(checkpoints, 1)  # without a score
    store_at(address).get("iteration-00001", tmp_path)
    assert not fault(tmp_path / "iteration-00001")


def test_a_key_that_leads_out_of_its_checkpoint_is_refused(checkpoints, tmp_path):
    copies = checkpoints.store
    places = [f"{copies._root}/iteration-00001/../../evil"]
    with (
        phase("bringing", 1) as progress,
        pytest.raises(ConfigError, match="is no file of a checkpoint"),
    ):
        copies._get("iteration-00001", places, tmp_path / "a" / "b", Heartbeat(), progress)
    assert not (tmp_path / "a").exists()


def test_a_setting_that_a_checkpoint_does_not_know_yet_is_no_difference(tmp_path, told):
    save(Checkpoints(tmp_path, 1), 1, identity=OURS | {"settings": {}})
    assert Checkpoints(tmp_path, 1, OURS, told.append).newest() and not told


@pytest.mark.parametrize(
    ("error", "free", "full"),
    [
        (RuntimeError("learner 1 failed: No space left on device (os error 28)"), 1, True),
        (OSError(errno.ENOSPC, "auf dem Gerät ist kein Platz"), 1, True),
        (RuntimeError("Disk quota exceeded"), 1, True),
        (RuntimeError("can't write"), 0, True),
        (RuntimeError("can't write"), 1, False),
        (OSError(errno.EACCES, "Permission denied"), 1, False),
    ],
)
def test_a_full_disk_is_known_by_its_number_its_words_or_by_what_is_free(
    tmp_path, monkeypatch, error, free, full
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert is_full(error, tmp_path) == full

"""A disk that is really full: a file system of its own, which a process mounts for itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
MOUNT = 'mount -t tmpfs -o size=2m tmpfs "$0" && echo mounted && exec "$@"'


def test_a_checkpoint_that_does_not_fit_is_removed_and_the_one_before_is_gone_on_from(
    tiny_llama, tmp_path
):
    if not shutil.which("unshare"):
        pytest.skip("no file system can be mounted here: there is no `unshare`")
    as_root = ["--map-root-user"] if os.geteuid() else []
    work = [sys.executable, "-m", "tests.learners.on_a_small_disk", tiny_llama, tmp_path]
    child = subprocess.run(
        ["unshare", *as_root, "--mount", "sh", "-c", MOUNT, tmp_path, *work],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "mounted" not in child.stdout:
        pytest.skip(f"no file system can be mounted here: {child.stderr.strip()}")
    assert child.returncode == 0, child.stdout + child.stderr
    assert not list(tmp_path.iterdir())  # it was all on that disk

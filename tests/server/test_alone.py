from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modaltune.errors import FederationError
from server.alone import LOCK, alone

HOLDER = """
import sys
from pathlib import Path
from server.alone import alone
with alone(Path(sys.argv[1])):
    print()
    input()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works on the run folder."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_run_folder_is_held_by_one_process_which_is_named(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(FederationError, match=rf"another process \({holder.pid}\) works on this run"),
        alone(tmp_path, 0),
    ):
        pytest.fail("two at once")


def test_a_run_folder_is_free_when_its_process_has_died(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    with alone(tmp_path, 15):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())

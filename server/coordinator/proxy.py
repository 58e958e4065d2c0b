"""Becomes nginx; before that, ends what a killed nginx left behind.

When the first process of nginx is killed, its workers go on with its settings and keep the port, so that no other can
start. They are found by their process group, whose number nobody else gets while they are in it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from server.coordinator.home import Home


def end_orphans(pid_file: Path) -> int:
    """Let the workers of a first process that is gone finish their requests and leave the port; returns how many."""
    try:
        leader, written = int(pid_file.read_text()), pid_file.stat().st_mtime
    except (FileNotFoundError, ValueError):
        return 0
    if psutil.pid_exists(leader) or written < psutil.boot_time():
        return 0
    orphans = [process for process in psutil.process_iter() if _group(process.pid) == leader]
    for process in orphans:
        process.send_signal(signal.SIGQUIT)
    return len(orphans)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:  # it has ended, or is somebody else's
        return None


def main(arguments: Sequence[str]) -> None:
    """``HOME COMMAND...``."""
    home = Home(Path(arguments[0]))
    end_orphans(home.nginx_pid)
    os.execv(arguments[1], list(arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])

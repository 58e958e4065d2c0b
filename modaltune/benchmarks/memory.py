"""Peak memory of this process, and of one made for a measurement."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from modaltune.errors import RunFailed

_STATUS = Path("/proc/self/status")


def peak_megabytes() -> float:
    """Largest resident size of this process so far, in 10^6 bytes."""
    if _STATUS.is_file():  # getrusage would count what the parent held when it started this process
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        if found is not None:
            return int(found[1]) * 1024 / 1e6
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6


def in_own_process(module: str, *arguments: object) -> dict[str, float]:
    """What a module prints as JSON on its last line when it is run by itself.

    Raises:
        RunFailed: the process did not end well.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.strip().splitlines()
        raise RunFailed(
            f"{module} {' '.join(command[3:])} ended with status {done.returncode}"
            + (f" ({told[-1]})" if told else "; killed processes have often run out of memory: measure fewer patches")
        )
    out: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return out


def forget_peak() -> None:
    """Begin to measure anew, where the system allows it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

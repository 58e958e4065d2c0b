"""One process a run folder: two that write into it at once would mix two runs."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from modaltune.errors import FederationError

LOCK = ".serverapp.lock"
PATIENCE_SECONDS = 90.0
"""A ServerApp learns from its next heartbeat that its run was stopped: within half a minute on an idle machine."""
_POLL_SECONDS = 0.2


@contextmanager
def alone(run: Path, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold a run folder; another process that holds it has so many seconds to end. A dead one holds nothing.

    Raises:
        FederationError: it did not.
    """
    until = time.monotonic() + patience
    with (run / LOCK).open("a+", encoding="ascii") as stream:
        while not _taken(stream):
            if time.monotonic() > until:
                stream.seek(0)
                raise FederationError(
                    f"{run}: another process ({stream.read()}) works on this run; end it, then: modaltune-server"
                    f" resume {run.name}"
                )
            time.sleep(_POLL_SECONDS)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _taken(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

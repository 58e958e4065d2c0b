"""One process a slide: lock files that a dead process does not keep."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file while the block runs; gives False when another process holds it.

    The file says who holds it (pid and host). One whose process on this host has ended is taken over.
    """
    held = _create(path) or (_remove_stale(path) and _create(path))
    try:
        yield held
    finally:
        if held:
            path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # nobody else judges the file now
        json.dump({"pid": os.getpid(), "host": platform.node()}, stream)
        stream.flush()
        return _is_at(path, stream.fileno())  # taken for a dead owner's while it was empty: another has it now


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _remove_stale(path: Path) -> bool:
    """Whether a dead owner's file was removed; of several processes that try, one does it."""
    try:
        with path.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is_at(path, stream.fileno()) or _alive(stream.read()):
                return False
            path.unlink()
            return True
    except FileNotFoundError:  # its owner has just finished
        return True


def _alive(owner: str) -> bool:
    """Whether the owner may still be at work: on another host nobody can tell."""
    try:
        pid, host = (json.loads(owner)[key] for key in ("pid", "host"))
    except ValueError:
        return False  # killed between creating the file and writing into it
    if host != platform.node():
        return True
    if pid == os.getpid():
        return False  # a container that was started again: same host name, same pid
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

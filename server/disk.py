"""The coordinator's own disk: when it fails, the run ends in one line, and no site is blamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modaltune.errors import RunFailed


@contextmanager
def own_disk(folder: Path, then: str = "resume the run") -> Iterator[None]:
    """Whatever reads or writes the files of a run, in ``folder``.

    Args:
        then: what to do when the disk is mended.
    Raises:
        RunFailed: the disk is full, or broken.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):  # a network, not a disk
            raise
        raise RunFailed(
            f"{error.filename or folder}: {error.strerror}; it is the coordinator's own disk, no hospital's: free space"
            f" there or mend it, and {then}"
        ) from error

"""Run folders: filled beside their final place, moved there when complete, and gone on with when they were cut off."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from modaltune.data.site import STATE_FOLDER
from modaltune.errors import ConfigError
from modaltune.storage import canonical_json, write_text

DONE = "DONE"
COMPARED = "compared"
"""Folder of a run that is not finished: predictions of the comparison models that are."""
_WORKING = ("sites", "truth", "probe", COMPARED)
_BEGUN, _MEMORY = ".begun.json", ".memory"
_FILES = "*.safetensors"  # of a federation under way, or of its model


@contextmanager
def run_folder(out: Path, begun: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Path]:
    """A folder to fill; it takes the place of ``out`` when the block ends well.

    A block that is cut off leaves it hidden beside ``out``, once a federation is under way in it. The next one that
    begins with the same gets it as it is, any other an empty one.

    Args:
        begun: all that decides what the folder will hold.
    Raises:
        ConfigError: ``out`` is no place for a run, or another process fills it.
    """
    if out.name in ("", ".."):
        raise ConfigError(f"{out}: give the run a folder of its own, e.g. --out runs/demo")
    if out.exists() and not (out / DONE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not a finished run; choose another --out or remove it")
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _alone(partial, out):
        if _prepare(partial, canonical_json(begun)):
            say(f"{out}: going on where it was interrupted")
        try:
            yield partial
        except BaseException:
            if not any(partial.rglob(_FILES)):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        write_text(partial / DONE, f"{version('flwr')}\n")
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
        (out / _BEGUN).unlink()


@contextmanager
def _alone(folder: Path, out: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{out}: another process works on it; wait for it or choose another --out") from error
        yield
    finally:
        os.close(handle)


def _prepare(folder: Path, begun: str) -> bool:
    """Whether the folder was begun with the same; if not, it is emptied."""
    note = folder / _BEGUN
    if note.is_file() and note.read_text(encoding="utf-8") == begun:
        return True
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_text(note, begun)
    return False


def seed_folders(run: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """Where each seed of a run is: the first in its own folder."""
    return {seed: run if seed == seeds[0] else run / "seeds" / str(seed) for seed in seeds}


def without_working_files(folder: Path) -> None:
    """Remove what a run or seed needs only until it is finished."""
    for name in _WORKING:
        shutil.rmtree(folder / name, ignore_errors=True)


def files_of(*folders: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change (ns) of every file below some folders, by which they are known again."""
    found = {path: path.stat() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(path): (about.st_size, about.st_mtime_ns) for path, about in found.items()}


@contextmanager
def remembered(folder: Path) -> Iterator[None]:
    """Inside, site folders two levels below may be written anew; what their hospitals remember of a run stays."""
    aside, states = folder / _MEMORY, f"*/*/{STATE_FOLDER}"
    for state in [*folder.glob(states)]:
        target = aside / state.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        state.replace(target)
    yield
    for state in [*aside.glob(states)]:
        state.replace(folder / state.relative_to(aside))
    shutil.rmtree(aside, ignore_errors=True)

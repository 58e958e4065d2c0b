"""All cells of a study: as many at a time as asked for, each in a process of its own; finished ones are skipped."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from modaltune.errors import ConfigError, DataError, RunFailed
from simulation.engine import cores
from simulation.run_folder import DONE
from simulation.studies.cell import CELL_FILE, write_cell
from simulation.studies.cells import Cell
from simulation.studies.features import HELP, missing

Say = Callable[[str], None]
Finished = Callable[[Cell, float], None]
Command = Callable[[Cell], str]
_LOCK_SECONDS = 60.0
_POLL_SECONDS = 0.2
_ATTEMPTS = 2  # on a busy machine the simulation engine may be too slow for its own patience


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that ended without a result.

    Attributes:
        reason: the error in one line.
    """

    cell: str
    reason: str


@dataclass(kw_only=True)
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    attempt: int
    started: float = field(default_factory=time.monotonic)


def cell_folder(out: Path, cell: Cell) -> Path:
    """The run folder of a cell."""
    return out / "cells" / cell.name


def state_of(out: Path, cell: Cell) -> str:
    """``done``, ``changed`` (finished with other settings) or ``open``."""
    folder = cell_folder(out, cell)
    if not (folder / DONE).is_file():
        return "open"
    found = json.loads((folder / CELL_FILE).read_text(encoding="utf-8"))["digest"]
    return "done" if found == cell.digest else "changed"


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    data: Path | None,
    workers: int,
    say: Say,
    finished: Finished,
    command: Command = lambda _: "",
) -> list[Failure]:
    """Run the cells that are not done; what went wrong in one does not stop the others.

    Args:
        out: folder of the study; ``cells/NAME`` are run folders, ``logs/NAME.log`` what each cell said.
        workers: cells at a time; they share the cores between them.
        finished: called with each cell that has ended well, and its seconds.
        command: which runs a cell again, for its report.
    Raises:
        ConfigError: another process works on this study.
        DataError: tables, features or weights that a cell needs are absent.
    """
    if lacking := missing(cells, data):
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise DataError(f"study {cells[0].study} cannot start, absent: {shown}; {HELP}")
    failures: list[Failure] = []
    with _alone(out, say) as lock:
        waiting = [(cell, 1) for cell in _not_done(cells, out, say)]
        running: list[_Running] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    cell, attempt = waiting.pop(0)
                    words = _words(cell, out, data, command(cell))
                    running.append(_start(cell, attempt, words, out, max(1, cores() // workers), lock))
                    say(f"{running[-1].cell.name}: started, {len(waiting)} to come")
                time.sleep(_POLL_SECONDS)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    if one.process.returncode == RunFailed.exit_code and one.attempt < _ATTEMPTS:
                        say(f"{one.cell.name}: {_reason(one)}; once more")
                        waiting.insert(0, (one.cell, one.attempt + 1))
                    else:
                        _ended(one, out, failures, say, finished)
        finally:
            _stop(running)
    return failures


def _not_done(cells: Sequence[Cell], out: Path, say: Say) -> list[Cell]:
    states = {cell.name: state_of(out, cell) for cell in cells}
    for name, state in states.items():
        if state == "changed":
            say(f"{name}: finished with other settings, runs again")
    if skipped := sum(state == "done" for state in states.values()):
        say(f"{skipped} of {len(cells)} cells are finished already")
    return [cell for cell in cells if states[cell.name] != "done"]


def _words(cell: Cell, out: Path, data: Path | None, command: str) -> list[str]:
    """The process of a cell, whose description is written."""
    task = out / "logs" / f"{cell.name}.json"
    task.parent.mkdir(parents=True, exist_ok=True)
    write_cell(task, cell)
    folders = [cell_folder(out, cell), *([] if data is None else [data])]
    return [sys.executable, "-m", "simulation.studies.cell", "--command", command, str(task), *map(str, folders)]


def _start(cell: Cell, attempt: int, words: Sequence[str], out: Path, threads: int, lock: IO[str]) -> _Running:
    log = out / "logs" / f"{cell.name}.log"
    (out / "cells").mkdir(exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,  # closed by the operating system when this process dies: the cell ends then
            stdout=stream,
            stderr=stream,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MODALTUNE_CORES": str(threads), "COLUMNS": "200"},
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    return _Running(cell=cell, process=process, log=log, attempt=attempt)


def _ended(one: _Running, out: Path, failures: list[Failure], say: Say, finished: Finished) -> None:
    seconds = time.monotonic() - one.started
    if one.process.stdin is not None:
        one.process.stdin.close()
    if one.process.returncode == 0 and state_of(out, one.cell) == "done":
        say(f"{one.cell.name}: finished after {seconds:.0f} s")
        finished(one.cell, seconds)
        return
    failures.append(Failure(cell=one.cell.name, reason=_reason(one)))
    say(f"{one.cell.name}: failed: {failures[-1].reason}")


def _reason(one: _Running) -> str:
    """The error that a cell named, or else how it ended."""
    lines = one.log.read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return named[-1] if named else f"ended with status {one.process.returncode}; see logs/{one.log.name}"


def _stop(running: Sequence[_Running]) -> None:
    """Ask every running cell to end, and wait until it has."""
    for one in running:
        if one.process.stdin is not None:
            one.process.stdin.close()
    for one in running:
        one.process.wait()


@contextmanager
def _alone(out: Path, say: Say) -> Iterator[IO[str]]:
    """Hold the study's lock; cells inherit it, so that those of a study that was killed end before the next begins."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as stream:
        for attempt in range(int(_LOCK_SECONDS)):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 0:
                    say(f"{out}: waiting for the end of another process that works on it")
                time.sleep(1)
        else:
            raise ConfigError(f"{out}: another process works on this study; wait for it or choose another --out")
        yield stream

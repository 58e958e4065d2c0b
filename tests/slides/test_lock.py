from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from modaltune.slides.lock import locked

context = multiprocessing.get_context("fork")


def test_a_lock_goes_away_when_the_work_ends_or_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path / "lock") as mine:
            assert mine
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert list(tmp_path.iterdir()) == []


def hold(file: Path, started: object) -> None:
    with locked(file):
        started.set()  # type: ignore[attr-defined]
        signal.pause()


def test_a_lock_is_respected_while_its_process_lives_and_no_longer(tmp_path: Path) -> None:
    file, started = tmp_path / "lock", context.Event()
    owner = context.Process(target=hold, args=(file, started))
    owner.start()
    assert started.wait(60)
    with locked(file) as mine:
        assert not mine
    assert file.exists()
    owner.kill()
    owner.join()
    with locked(file) as mine:
        assert mine
    assert not file.exists()


def contend(file: Path, start: object, log: Path) -> None:
    start.wait()  # type: ignore[attr-defined]
    with locked(file) as mine:
        if mine:
            with log.open("a") as stream:
                stream.write("in\n")
            for _ in range(20):
                os.sched_yield()
            with log.open("a") as stream:
                stream.write("out\n")


def test_of_many_processes_one_at_a_time_goes_on(tmp_path: Path) -> None:
    file, log = tmp_path / "lock", tmp_path / "log"
    file.write_text("left by a killed process")
    start = context.Event()
    crowd = [context.Process(target=contend, args=(file, start, log)) for _ in range(8)]
    for process in crowd:
        process.start()
    start.set()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * 8
    words = log.read_text().split()
    assert words
    assert words == ["in", "out"] * (len(words) // 2)
    assert not file.exists()

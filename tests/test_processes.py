from __future__ import annotations

import json
import os
import pwd
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from supervisor.options import UnhosedConfigParser, expand

from modaltune import processes
from modaltune.errors import ConfigError, ServiceError
from modaltune.processes import Program, restart, send_signal, start, states, stop, write_config
from tests.waiting import wait_for

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def sleeper(home: Path, name: str = "sleeper") -> Program:
    return Program(name=name, command=SLEEPER, folder=home, start_seconds=0)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    stop(tmp_path / "supervisor.conf")


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pid_of(config: Path, name: str) -> int:
    return next(state.pid or 0 for state in states(config) if state.name == name)


def test_programs_run_until_they_are_stopped(home: Path) -> None:
    config = write_config(home, [sleeper(home, "first"), sleeper(home, "second")])
    assert states(config) == []
    start(config)
    wait_for(lambda: all(state.state == "RUNNING" for state in states(config)))
    first, second = states(config)
    assert (first.name, second.name) == ("first", "second")
    assert first.pid is not None
    assert second.pid is not None
    assert 0 <= first.uptime < 60
    with pytest.raises(ServiceError, match="its programs run already; stop them first"):
        start(config)
    assert stop(config)
    assert states(config) == []
    assert not alive(first.pid)
    assert not alive(second.pid)
    assert not stop(config)


def test_a_program_that_is_killed_is_started_again(home: Path) -> None:
    config = write_config(home, [sleeper(home)])
    start(config)
    wait_for(lambda: pid_of(config, "sleeper"))
    before = pid_of(config, "sleeper")
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: pid_of(config, "sleeper") not in (0, before))
    assert alive(pid_of(config, "sleeper"))


def test_a_program_that_does_not_stay_up_is_tried_again_and_again(home: Path) -> None:
    count = "open('starts', 'a').write('.')"
    config = write_config(home, [Program(name="brief", command=[sys.executable, "-c", count], folder=home)])
    start(config)
    wait_for(lambda: (home / "starts").exists() and len((home / "starts").read_text()) >= 3)
    assert states(config)[0].state in {"BACKOFF", "STARTING"}
    restart(config, "brief")


def orphaned(home: Path) -> tuple[Path, int]:
    """A program whose supervisord was killed."""
    config = write_config(home, [sleeper(home)])
    start(config)
    wait_for(lambda: pid_of(config, "sleeper"))
    orphan = pid_of(config, "sleeper")
    os.kill(int((home / "run" / "supervisor.pid").read_text()), signal.SIGKILL)
    wait_for(lambda: states(config) == [])
    return config, orphan


def test_programs_of_a_supervisord_that_was_killed_do_not_run_twice(home: Path) -> None:
    config, orphan = orphaned(home)
    assert alive(orphan)
    start(config)
    assert not alive(orphan)
    wait_for(lambda: pid_of(config, "sleeper"))


def test_stop_ends_the_programs_of_a_supervisord_that_was_killed(home: Path) -> None:
    config, orphan = orphaned(home)
    assert stop(config)
    assert not alive(orphan)


@pytest.mark.parametrize("stuck", [False, True])
def test_a_supervisord_that_does_not_answer_is_ended_with_its_programs(
    stuck: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, pids = write_config(home, [sleeper(home)]), list[int]()

    def silent(*_: object) -> bool:
        wait_for(lambda: states(config) and pid_of(config, "sleeper"))
        pids.extend([int((home / "run" / "supervisor.pid").read_text()), pid_of(config, "sleeper")])
        if stuck:
            os.kill(pids[0], signal.SIGSTOP)
        return False

    monkeypatch.setattr(processes, "_answers", silent)
    monkeypatch.setattr(processes, "_START_SECONDS", 0)
    monkeypatch.setattr(processes, "_STOP_SECONDS", 1 if stuck else 30)
    with pytest.raises(ServiceError, match="says why supervisord does not answer"):
        start(config)
    assert not any(map(alive, pids))
    assert not stop(config)


def test_in_the_foreground_a_termination_stops_the_programs_too(home: Path) -> None:
    config = write_config(home, [sleeper(home)])
    call = f"from pathlib import Path; from modaltune.processes import foreground; foreground(Path({str(config)!r}))"
    service = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.DEVNULL)
    wait_for(lambda: states(config) and pid_of(config, "sleeper"))
    pid = pid_of(config, "sleeper")
    wait_for(
        lambda: psutil.Process(pid).cmdline() == SLEEPER
    )  # before, it is a copy of supervisord, which loses signals
    service.terminate()
    assert service.wait(timeout=15) == 0
    assert not alive(pid)


def test_a_program_gets_its_arguments_variables_and_folder_exactly_and_leaves_a_log(home: Path) -> None:
    (home / "place").mkdir()
    arguments = ['site="h1" n=1', "a ;b", "a #b", "100%", "%(ENV_HOME)s", "it's", "back\\slash", "", "ä"]
    tell = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['PLACE'], os.getcwd(), os.umask(0)]))"
    program = Program(
        name="teller",
        command=[sys.executable, "-c", tell, *arguments],
        environment={"PLACE": "a, b=c 50% ish"},
        folder=home / "place",
    )
    start(write_config(home, [program]))
    log = home / "logs" / "teller.log"
    wait_for(lambda: log.exists() and "\n" in log.read_text())
    told, place, folder, umask = json.loads(log.read_text().splitlines()[0])
    assert told == arguments
    assert place == "a, b=c 50% ish"
    assert folder == str(home / "place")
    assert umask == 0o077


ONE_LINE = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8)


@settings(max_examples=30)
@given(st.lists(ONE_LINE, max_size=4))
def test_any_argument_survives_the_configuration_file(
    tmp_path_factory: pytest.TempPathFactory, arguments: list[str]
) -> None:
    home = tmp_path_factory.mktemp("home")
    config = write_config(home, [Program(name="any", command=[sys.executable, *arguments], folder=home)])
    parser = UnhosedConfigParser()
    parser.read(str(config), encoding="utf-8")
    assert shlex.split(expand(parser.get("program:any", "command"), {}, "command")) == [sys.executable, *arguments]


def test_only_the_owner_can_reach_what_runs(home: Path) -> None:
    config = write_config(home, [sleeper(home)])
    start(config)
    assert stat.S_IMODE((home / "run" / "supervisor.sock").stat().st_mode) == 0o600
    for folder in ("run", "logs"):
        assert stat.S_IMODE((home / folder).stat().st_mode) == 0o700


def test_one_program_is_restarted_or_gets_a_signal(home: Path) -> None:
    listen = (
        "import signal, time; signal.signal(signal.SIGHUP, lambda *_: print('again', flush=True));"
        "print('up', flush=True); time.sleep(600)"
    )
    hearing = Program(name="hearing", command=[sys.executable, "-c", listen], folder=home, start_seconds=0)
    config = write_config(home, [hearing, sleeper(home)])
    start(config)
    log = home / "logs" / "hearing.log"
    wait_for(lambda: log.exists() and "up" in log.read_text() and pid_of(config, "sleeper"))
    before = {state.name: state.pid for state in states(config)}
    send_signal(config, "hearing", "HUP")
    wait_for(lambda: "again" in log.read_text())
    restart(config, "sleeper")
    wait_for(lambda: pid_of(config, "sleeper") not in (0, before["sleeper"]))
    assert pid_of(config, "hearing") == before["hearing"]
    with pytest.raises(ServiceError, match="of other failed: BAD_NAME"):
        restart(config, "other")
    stop(config)
    with pytest.raises(ServiceError, match="its programs do not run; start them"):
        send_signal(config, "hearing", "HUP")


def test_what_cannot_be_supervised_is_one_clear_error(tmp_path: Path) -> None:
    absent = Program(name="absent", command=["no-such-program"], folder=tmp_path)
    with pytest.raises(ServiceError, match="program absent: there is no command no-such-program; install it"):
        write_config(tmp_path, [absent])
    with pytest.raises(ConfigError, match="longer than a Unix socket may be"):
        write_config(tmp_path / ("x" * 100), [])
    with pytest.raises(ConfigError, match="an absolute path without"):
        write_config(Path("home"), [])
    with pytest.raises(ConfigError, match="this machine has no user 'nobody-here'"):
        write_config(tmp_path, [Program(name="a", command=SLEEPER, folder=tmp_path, user="nobody-here")])
    with pytest.raises(ServiceError, match="the programs were not started"):
        start(tmp_path / "supervisor.conf")


@pytest.mark.parametrize(
    "wrong", [{"name": "a b"}, {"name": "a]"}, {"command": []}, {"command": ["a\nb"]}, {"environment": {"A": 'x"y'}}]
)
def test_a_program_that_its_configuration_cannot_hold_is_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="program"):
        Program(**({"name": "a", "command": ["a"], "folder": tmp_path} | wrong))  # type: ignore[arg-type]


def test_a_program_of_another_user_runs_as_that_user(home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start programs of other users")
    command = ["/bin/sh", "-c", 'echo "$(id -u) $HOME"']
    program = Program(name="other", command=command, folder=Path("/"), user="nobody")
    start(write_config(home, [program]))
    log = home / "logs" / "other.log"
    wait_for(lambda: log.exists() and "\n" in log.read_text())
    assert log.read_text().split()[:2] == [str(pwd.getpwnam("nobody").pw_uid), pwd.getpwnam("nobody").pw_dir]

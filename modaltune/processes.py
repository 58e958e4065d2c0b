"""Programs that run in the background for weeks, kept alive by supervisord.

A program that ends is started again. One that does not stay up for ``start_seconds`` is tried again after 1 s, 2 s,
3 s and so on: after a day of failures every 7 minutes, and never given up. supervisord is reached over a Unix socket
that only its owner can open.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from configparser import RawConfigParser
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn
from xmlrpc.client import Error, Fault, ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport

from modaltune.errors import ConfigError, ServiceError
from modaltune.storage import write_text

_SOCKET_LENGTH = 96  # of 107 bytes that a Unix socket's path may have: supervisord appends its process id at first
_START_SECONDS, _STOP_SECONDS = 15, 30
_END_SECONDS = 2  # a process that was killed stops answering a little before it is gone
_SUPERVISORD = (sys.executable, "-m", "supervisor.supervisord")


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program to keep running.

    Attributes:
        command: program and arguments; no secret, every user of the machine sees them.
        environment: variables beside those that supervisord has; no secret either.
        folder: where it runs.
        user: another user of the operating system, which only root can arrange.
        start_seconds: a program that ends sooner has failed to start.
    """

    name: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    start_seconds: int = 3

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ConfigError(f"name of a program: letters, digits, - and _ only, got {self.name!r}")
        if not self.command or any(re.search(r"[\0\r\n]", argument) for argument in self.command):
            raise ConfigError(f"program {self.name}: needs a command, on one line")
        for variable, value in self.environment.items():
            if re.search(r"[\0\r\n\"'\\]|\s[;#]", value):
                raise ConfigError(
                    f"program {self.name}: {variable} holds a quote, a backslash, a new line or a comment"
                )


@dataclass(frozen=True)
class State:
    """How one program does.

    Attributes:
        state: RUNNING, STARTING, BACKOFF (waits to be started again), STOPPING, STOPPED, EXITED or FATAL.
        pid: its process, or none.
        uptime: seconds since it was started; 0 when it does not run.
    """

    name: str
    state: str
    pid: int | None
    uptime: float


def write_config(home: Path, programs: Sequence[Program]) -> Path:
    """Write ``supervisor.conf`` for programs that start in this order and stop in the reverse one.

    Args:
        home: absolute folder; receives ``run/`` (socket, process id) and ``logs/`` (one file a program, rotated).
    """
    socket = home / "run" / "supervisor.sock"
    if len(os.fsencode(socket)) > _SOCKET_LENGTH:
        raise ConfigError(f"{socket}: longer than a Unix socket may be ({_SOCKET_LENGTH} bytes); choose a shorter home")
    if not home.is_absolute() or re.search(r"[%;#\"'\\\r\n]", str(home)):
        raise ConfigError(f"{home}: the home must be an absolute path without % ; # quotes and backslashes")
    for folder in (home / "run", home / "logs"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = RawConfigParser()
    config["unix_http_server"] = {"file": str(socket), "chmod": "0600"}
    config["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    config["supervisord"] = {
        "logfile": str(home / "logs" / "supervisor.log"),
        "logfile_maxbytes": "10MB",
        "logfile_backups": "5",
        "pidfile": str(home / "run" / "supervisor.pid"),
        "umask": "077",
    }
    if os.geteuid() == 0:
        config["supervisord"]["user"] = "root"
    for priority, program in enumerate(programs):
        config[f"program:{program.name}"] = _section(program, home / "logs" / f"{program.name}.log", priority)
    text = StringIO()
    config.write(text)
    write_text(home / "supervisor.conf", text.getvalue())
    return home / "supervisor.conf"


def start(config: Path) -> None:
    """Start the programs in the background; returns when supervisord answers, or ends it again."""
    with _supervisord(config) as running:
        if running is not None:
            raise ServiceError(f"{config.parent}: its programs run already; stop them first")
    _end_orphans(config)
    result = subprocess.run([*_SUPERVISORD, "-c", config], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[0]
        raise ServiceError(f"{config}: the programs were not started: {reason}")
    if not _happens(lambda: _answers(config), _START_SECONDS):
        _end_silent(config)
        raise ServiceError(f"{config.parent / 'logs' / 'supervisor.log'}: says why supervisord does not answer")


def foreground(config: Path) -> NoReturn:
    """Become supervisord: for systemd and containers, which supervise it in turn."""
    os.execv(_SUPERVISORD[0], [*_SUPERVISORD, "-n", "-c", str(config)])


def stop(config: Path) -> bool:
    """Stop the programs (TERM, after 30 s KILL) and wait for it; returns whether anything ran."""
    with _supervisord(config) as running:
        if running is None:
            return _end_orphans(config)
        programs = len(running.getAllProcessInfo())
        running.shutdown()
    pid = _pid_file(config)  # goes when everything has ended
    if not _happens(lambda: not pid.exists(), _STOP_SECONDS * (programs + 1)):
        raise ServiceError(f"{config.parent}: its programs do not stop; logs/supervisor.log says which")
    return True


def states(config: Path) -> list[State]:
    """How the programs do, in the order of their start; empty when nothing was started."""
    with _supervisord(config) as running:
        rows = [] if running is None else running.getAllProcessInfo()
    return [
        State(
            row["name"], row["statename"], row["pid"] or None, float(row["now"] - row["start"]) if row["pid"] else 0.0
        )
        for row in rows
    ]


def restart(config: Path, name: str) -> None:
    """Stop one program and start it again, at once also when it waits after failures."""
    with _supervisord(config) as running:
        _ask(running, config, name, "stopProcess")
        _ask(running, config, name, "startProcess", False)


def send_signal(config: Path, name: str, signal: str) -> None:
    """Send one program a signal, for instance HUP for reading its files again."""
    with _supervisord(config) as running:
        _ask(running, config, name, "signalProcess", signal)


def _section(program: Program, log: Path, priority: int) -> dict[str, str]:
    environment = {**_user_environment(program), **program.environment}
    if shutil.which(program.command[0], path=environment.get("PATH")) is None:
        raise ServiceError(f"program {program.name}: there is no command {program.command[0]}; install it, or set PATH")
    section = {
        "command": " ".join(_quoted(argument) for argument in program.command),
        "directory": str(program.folder).replace("%", "%%"),
        "environment": ",".join(f'{key}="{value}"' for key, value in environment.items()).replace("%", "%%"),
        "priority": str(priority),
        "startsecs": str(program.start_seconds),
        "startretries": "1000000",
        "autorestart": "true",
        "stopsignal": "TERM",
        "stopwaitsecs": str(_STOP_SECONDS),
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": str(log),
        "stdout_logfile_maxbytes": "10MB",
        "stdout_logfile_backups": "5",
    }
    return section | ({"user": program.user} if program.user else {})


def _user_environment(program: Program) -> dict[str, str]:
    if program.user is None:
        return {}
    try:
        account = pwd.getpwnam(program.user)
    except KeyError:
        raise ConfigError(f"program {program.name}: this machine has no user {program.user!r}; create it") from None
    if os.geteuid() not in (0, account.pw_uid):
        raise ConfigError(f"program {program.name}: only root can run it as user {program.user!r}; start as root")
    return {"HOME": account.pw_dir, "USER": program.user, "LOGNAME": program.user}


def _quoted(argument: str) -> str:
    """An argument for a ``command`` line, where quotes would not protect a comment sign after a space."""
    return re.sub(r"([^\w@+=:,./-])", r"\\\1", argument, flags=re.ASCII).replace("%", "%%") or "''"


@contextmanager
def _supervisord(config: Path) -> Iterator[Any]:
    """The interface of the supervisord that runs for this file, or none."""
    transport = SupervisorTransport(None, None, f"unix://{config.parent / 'run' / 'supervisor.sock'}")
    supervisord: Any = ServerProxy("http://localhost", transport=transport).supervisor  # the transport says where
    try:
        try:
            at_work = supervisord.getState()["statename"] == "RUNNING"
        except (OSError, Error):
            at_work = False
        yield supervisord if at_work else None
    finally:
        transport.close()


def _answers(config: Path) -> bool:
    with _supervisord(config) as running:
        return running is not None


def _end_silent(config: Path) -> None:
    """End a supervisord that does not answer, and its programs."""
    words = [*_SUPERVISORD, "-c", str(config)]
    _terminate([process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == words])
    _end_orphans(config)


def _end_orphans(config: Path) -> bool:
    """End the programs that a supervisord left when it was killed, so that they do not run twice.

    ``start`` makes supervisord the leader of a session, and the system gives a leader's id to nobody else while the
    session has members: whoever is in the session of a leader that is gone was started by it.
    """
    try:
        leader, written = int(_pid_file(config).read_text()), _pid_file(config).stat().st_mtime
    except (FileNotFoundError, ValueError):
        return False
    if written < psutil.boot_time() or not _happens(lambda: _ended(leader), _END_SECONDS):
        return False
    orphans = [one for one in psutil.process_iter() if _session(one.pid) == leader and not _ended(one.pid)]
    _terminate(orphans)
    return bool(orphans)


def _terminate(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=_STOP_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:  # it has ended, or is somebody else's
        return None


def _pid_file(config: Path) -> Path:
    return config.parent / "run" / "supervisor.pid"


def _ask(running: Any, config: Path, name: str, method: str, *arguments: object) -> None:
    if running is None:
        raise ServiceError(f"{config.parent}: its programs do not run; start them")
    try:
        getattr(running, method)(name, *arguments)
    except Fault as fault:
        if method != "stopProcess" or not fault.faultString.startswith("NOT_RUNNING"):
            raise ServiceError(f"{config.parent}: {method} of {name} failed: {fault.faultString}") from None


def _happens(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (happened := done()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return happened

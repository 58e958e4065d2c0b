"""Starts the real coordinator and a fleet of answering sites, runs a study and measures the coordinator's processes."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modaltune.errors import FederationError
from modaltune.processes import Program, start, states, stop, write_config
from modaltune.storage import write_text
from modaltune.trust.keys import create_node_key
from server.coordinator.home import Home, Settings
from server.coordinator.link import connected
from server.coordinator.runs import follow, start_run
from server.coordinator.services import start_services, stop_services
from server.coordinator.setup import init
from server.coordinator.sites import admit, invite
from simulation.scale.studies import scale_study

Say = Callable[[str], None]
_CONNECT_SECONDS, _DEADLINE_SECONDS = 1200.0, 3600.0


def measure_scale(sites: int, size: str, rounds: int, say: Say) -> dict[str, Any]:
    """Run a study over sites that only answer.

    Returns:
        Sites, rounds, seconds of each round, megabytes each way, and peak memory of ServerApp and SuperLink in 10^6
        bytes, as the kernel counted it (Linux).
    """
    names = [f"S{number:04d}" for number in range(sites)]
    with tempfile.TemporaryDirectory(prefix="modaltune-scale-") as folder, contextlib.ExitStack() as stack:
        home = _coordinator(Path(folder) / "c")
        stack.callback(stop_services, home)
        say(f"registering {sites} sites")
        _register(home, Path(folder) / "keys", names)
        say("connecting them")
        fleet = _start_fleet(home, Path(folder))
        stack.callback(stop, fleet)
        _await(home, fleet, sites)
        study = Path(folder) / "study.json"
        write_text(study, scale_study(size, names, rounds, _DEADLINE_SECONDS).to_json())
        peaks = stack.enter_context(_watched(("flwr-serverapp", "flower-superlink")))
        say("running")
        run = start_run(home, study, "scale")
        status = follow(home, run, lambda row: say(f"{row['phase']} {row['round']}: {row['seconds']:.1f} s"))
        rows = [row for row in run.rounds() if row["phase"] == "train"]
        return {
            "sites": sites,
            "study": size,
            "status": status["status"],
            "contributors": min(len(row["contributors"]) for row in rows),
            "round_seconds": [row["seconds"] for row in rows],
            "mb_down": rows[0]["bytes_down"] / 1e6,
            "mb_up": rows[0]["bytes_up"] / 1e6,
            "serverapp_peak_mb": peaks["flwr-serverapp"],
            "superlink_peak_mb": peaks["flower-superlink"],
        }


def _coordinator(folder: Path) -> Home:
    home = Home(folder)
    ports = [_free_port() for _ in range(3)]
    settings = Settings(
        hosts=("localhost",), listen="127.0.0.1", port=ports[0], superlink_port=ports[1], health_port=ports[2]
    )
    init(home, settings)
    start_services(home, in_foreground=False)
    return home


def _register(home: Home, keys: Path, names: list[str]) -> None:
    keys.mkdir()
    for name in names:
        invite(home, name, keys)
        create_node_key(keys / f"{name}.key")
        (keys / f"{name}.key.pub").rename(keys / f"{name}.pub")
        admit(home, keys / f"{name}.pub")


def _start_fleet(home: Home, folder: Path) -> Path:
    command = [sys.executable, "-m", "simulation.scale.fleet", home.settings().superlink]
    command += [str(folder / "keys"), str(home.ca_certificate)]
    environment = {"FLWR_HOME": str(folder / "flower"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    fleet = Program(name="fleet", command=command, environment=environment, folder=folder)
    config = write_config(folder / "f", [fleet])
    start(config)
    return config


def _await(home: Home, fleet: Path, sites: int) -> None:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while time.monotonic() < deadline:
        if any(state.state in ("BACKOFF", "FATAL") for state in states(fleet)):
            raise FederationError(f"the answering sites ended: {(fleet.parent / 'logs' / 'fleet.log')}")
        with connected(home) as link:
            online = sum(node.online for node in link.nodes())
        if online == sites:
            return
        time.sleep(max(1.0, sites / 100))
    raise FederationError(f"{online} of {sites} sites connected in {_CONNECT_SECONDS:.0f} s")


@contextlib.contextmanager
def _watched(names: tuple[str, ...]) -> Iterator[dict[str, float]]:
    """Peak memory of processes by name, read until the block ends."""
    peaks, done = dict.fromkeys(names, 0.0), threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            for name, peak in _peaks(names):
                peaks[name] = max(peaks[name], peak)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _peaks(names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            name = next((name for name in names if f"/{name}\0" in command), None)
            found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text()) if name else None
            if name and found:
                yield name, int(found[1]) * 1024 / 1e6


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""The real services on loopback: a coordinator behind nginx, hospitals with homes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from flwr.supercore.task_identity import TaskIdentity

import client.home
from client.approvals import Approval, Approvals
from client.bundle import installed_bundle
from client.disclosure import embed_labels
from client.enrol import enrol
from client.runtime import Site
from client.services import service_states as client_states
from modaltune.federation.study import Study
from modaltune.invitation import Invitation
from modaltune.storage import write_text
from modaltune.trust.keys import create_node_key
from server.coordinator.home import Home, Settings
from server.coordinator.link import connected
from server.coordinator.runs import Run, follow, start_run
from server.coordinator.services import service_states, start_services, stop_services
from server.coordinator.setup import init
from server.coordinator.sites import admit, invite
from simulation.study import read_sites
from simulation.synthetic import build_synthetic
from tests.client.stack import free_port
from tests.integration.helpers import make_study, run_script, vocabulary

SITES, STRANGER = ("H1", "H2"), "H5"
DEADLINE_SECONDS, PATIENCE, DISK = 600.0, 600.0, "512m"
State = Mapping[str, Any]


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait for something and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)
    return found


class Stack:
    """Everybody's folder lies in ``folder``, short as names of Unix sockets have to be.

    The coordinator and the hospital H2 have a small disk of their own each, where this machine lets one be mounted.
    """

    def __init__(self, wanted: Collection[str]) -> None:
        self.wanted = wanted  # names of the cases that will be run
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, 0  # who writes messages here
        self.folder = Path(tempfile.mkdtemp(prefix="mt-", dir="/tmp"))
        self.mounted = [path for path in (self.folder / "s", self.folder / "H2") if _mount(path)]
        self.server = Home(self.folder / "s")
        self.homes = {site: client.home.Home(self.folder / site / "home") for site in SITES}
        self.count = 0
        self._found: dict[Any, Any] = {}

    def begin(self) -> None:
        """Build the cohort, enrol the hospitals and start everything."""
        built = {folder.name: folder for folder in build_synthetic(self.folder / "cohort", cases=80)}
        self.data = {STRANGER: built[STRANGER]}
        for site in SITES:
            self.data[site] = Path(shutil.copytree(built[site], self.folder / site / "site"))
        for folder in self.data.values():
            settings = folder / "site.toml"
            settings.write_text(settings.read_text().replace("min_cell = 5", "min_cell = 1"))
        ports = dict(zip(("port", "superlink_port", "health_port"), (free_port() for _ in range(3)), strict=True))
        init(self.server, Settings(hosts=("localhost",), listen="127.0.0.1", **ports))
        start_services(self.server, in_foreground=False)
        for site in SITES:
            self._enrol(site)
            self.approve(site, self.study)
            self.start(site)

    @cached_property
    def study(self) -> Study:
        """Two rounds over two hospitals with different tasks and modalities.

        A round goes on with one of them, so that a fault which loses the other shows in the weights.
        """
        folders = [self.data[site] for site in SITES]
        drafted = make_study(read_sites(folders, vocabulary(), "unused"), self.folder / "cohort" / "gene_sets.gmt")
        return drafted.model_copy(update={"quorum": 1, "deadline_seconds": DEADLINE_SECONDS})

    @cached_property
    def weights(self) -> str:
        """Hash of the final weights of a run that nobody disturbs."""
        status = self.follow(self.submit("undisturbed"))
        assert status["status"] == "OK", status
        return str(status["weights"])

    def once(self, work: Callable[[Stack], Any]) -> Any:
        """What several cases look at, done for the first of them."""
        if work not in self._found:
            try:
                self._found[work] = work(self)
            except Exception as problem:
                self._found[work] = problem
                raise
        if isinstance(found := self._found[work], Exception):
            raise AssertionError(f"the run that several cases share failed: {found}")
        return found

    @property
    def address(self) -> str:
        """Where hospitals connect to."""
        return self.server.settings().address

    def submit(self, name: str, study: Study | None = None) -> Run:
        """Submit a run of a study."""
        self.count += 1
        path = self.folder / "study.json"
        write_text(path, (study or self.study).to_json())
        return start_run(self.server, path, f"{name}-{self.count}")

    def follow(self, run: Run, say: Callable[[State], None] = lambda _: None) -> State:
        """Its final status; RunFailed when it ends without a model."""
        return follow(self.server, run, say)

    def approve(self, site: str, study: Study, bundle: str | None = None) -> None:
        """What ``modaltune-client approve`` does."""
        home = self.homes[site]
        with home.app_cache():
            embed_labels(study)
        Approvals(home.approvals).add(Approval.of(Site(self.data[site], study), bundle or installed_bundle()))

    def start(self, site: str, **environment: str) -> None:
        """Start a hospital's two programs."""
        with mock.patch.dict(os.environ, environment):
            ran = run_script("modaltune-client", "start", "--home", self.homes[site].folder)
        assert ran.code == 0, ran.err

    def stop(self, site: str) -> None:
        """Stop a hospital."""
        run_script("modaltune-client", "stop", "--home", self.homes[site].folder)

    def process(self, name: str, site: str | None = None) -> psutil.Process | None:
        """A supervised program, or what its starter runs: ``serverapp`` and ``clientapp``; None while it is away."""
        states = service_states(self.server) if site is None else client_states(self.homes[site])
        starter = {"serverapp": "superexec", "clientapp": "app"}.get(name, name)
        pid = next((state.pid for state in states if state.name == starter), None)
        if pid is None or starter == name:
            return None if pid is None else psutil.Process(pid)
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if f"flwr-{name}" in " ".join(child.cmdline()) or (name == "clientapp" and child.ppid() != pid):
                        return child
        return None

    def kill(self, name: str, site: str | None = None) -> None:
        """``kill -9``, as soon as there is something to kill."""
        with suppress(psutil.NoSuchProcess):
            until(lambda: self.process(name, site), f"no {name} to kill").kill()

    def audit(self, site: str) -> list[dict[str, Any]]:
        """A hospital's audit log."""
        return [json.loads(line) for line in self.homes[site].audit.read_text().splitlines()]

    def node(self, site: str) -> int:
        """Flower's number of a hospital that is online."""
        key = self.homes[site].settings().site
        nodes = json.loads(self.server.sites.read_text())
        node = int(nodes[key]["node_id"])
        with connected(self.server) as link:
            until(lambda: any(n.node_id == node and n.online for n in link.nodes()), f"{site} is not online")
        return node

    def key(self, site: str, *, admitted: bool = True) -> Path:
        """A node key made outside the product; the site is admitted with it, or only has it."""
        folder = self.folder / "keys"
        folder.mkdir(exist_ok=True)
        path = folder / f"{site}.key"
        if not path.exists():
            create_node_key(path)
            Path(f"{path}.pub").rename(folder / f"{site}.pub")
            if admitted:
                invite(self.server, site, folder)
                admit(self.server, folder / f"{site}.pub")
        return path

    def end(self) -> None:
        """Stop everything and remove it."""
        for site in SITES:
            if self.homes[site].folder.joinpath("supervisor.conf").exists():
                self.stop(site)
        if self.server.settings_file.exists():
            stop_services(self.server)
        for path in self.mounted:
            subprocess.run(["umount", "--lazy", path], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _enrol(self, site: str) -> None:
        path = invite(self.server, site, self.folder)
        enrol(self.homes[site], Invitation.load(path), self.data[site], self.folder)
        admit(self.server, self.folder / f"{site}.pub")


def _mount(path: Path) -> bool:
    """A disk of its own for a folder; only an administrator may, and not in every container."""
    path.mkdir()
    if shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """While it lasts, the disk of a folder is full."""
    ballast = folder / ".ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while stream.write(b"\0" * size):
                    pass
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """While it lasts, a process and its children stand still, as a connection does whose cable is cut."""
    every = [process, *process.children(recursive=True)]
    for one in every:
        one.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for one in every:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGCONT)

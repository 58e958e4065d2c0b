"""Starts client apps as Flower's superexec does, but out of a process that has loaded their libraries already.

An app's process lives for one message, and importing torch, pandas and Flower takes it seconds. Here a nursery imports
them once, before it has a thread or a connection, and each app is a fork of it. The project's own packages are not
among them: an app runs the code of its bundle. Tokens go through a pipe, not over a command line.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from modaltune.console import run_app

_LIBRARIES = ("flwr.clientapp", "torch", "pandas", "pyarrow.parquet", "h5py", "safetensors.torch")
_OURS = ("client", "modaltune")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Nursery:
    """A process of which apps are forks; it has to be made before anything else is."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(writing)
            _raise_apps(reading)
            sys.exit()
        os.close(reading)
        self.orders = os.fdopen(writing, "w", buffering=1)

    def order(self, **given: Any) -> None:
        """One app, with these arguments of Flower's ``run_clientapp``."""
        self.orders.write(json.dumps(given) + "\n")


def _raise_apps(reading: int) -> None:
    """One app for each line, until the other end is closed; returns in the apps, too, when they are done."""
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    for name in _LIBRARIES:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries them
    while line := _line(reading):
        if os.fork() == 0:
            os.close(reading)  # or an app that stays could read the token of the next
            _forget_us()
            run_clientapp(**json.loads(line))
            return


def _line(reading: int) -> bytes:
    """One line, and no byte more: a fork must not hold what is meant for the next. Empty at the end."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(reading, 1)):
        line += byte
    return line


def _forget_us() -> None:
    """Leave an app nothing of this process but the libraries."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name in [name for name in sys.modules if name.split(".")[0] in _OURS]:
        del sys.modules[name]
    logging.getLogger("modaltune").setLevel(logging.NOTSET)
    logging.basicConfig(level=logging.WARNING, force=True)


class Forks:
    """The nursery behind Flower's interface of an executor."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery

    def get_eligible_capacity(self, supported_task_types: set[Any], **_: Any) -> tuple[set[Any], set[str]]:
        """Client apps only, and no end of them."""
        return {kind for kind in supported_task_types if kind.name == "CLIENT_APP"}, set()

    def launch(self, spec: Any) -> Any:
        """Start the app of a task."""
        from flwr.supercore.superexec.executor import LaunchResult

        given = {"runtime_api_address": spec.runtime_api_address, "token": spec.token, "insecure": spec.insecure}
        self.nursery.order(**given, parent_pid=spec.parent_pid)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Nothing to look after."""

    def close(self) -> None:
        """The nursery ends with the pipe; apps see that this process is gone."""


@app.command()
def start(
    address: Annotated[str, typer.Option(help="Where the hospital's daemon listens for apps.")],
    secret: Annotated[Path, typer.Option(help="File with the secret that daemon and starter share.")],
) -> None:
    """Start an app for each message that the daemon lets in."""
    nursery = Nursery()
    from flwr.supercore.utils import disable_process_dumping

    disable_process_dumping(strict=False)
    flower: Any = import_module("flwr.supercore.superexec.run_superexec")
    flower.get_executor = lambda *_, **__: Forks(nursery)
    flower.run_superexec(address, insecure=True, superexec_auth_secret=secret.read_bytes())


if __name__ == "__main__":
    run_app(app, "report it")

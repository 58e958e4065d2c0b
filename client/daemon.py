"""The hospital's daemon: Flower's SuperNode with a guard at its two doors.

``python -m client.daemon --home HOME`` runs until it is stopped; ``modaltune-client start`` supervises it. Flower
retries the connection for as long as it takes; what it gives up on (a refused certificate, a revoked key) ends the
process, and the supervisor starts it again.
"""

from __future__ import annotations

import inspect
import logging
import os
import ssl
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from client.home import Home, Settings
from modaltune.console import run_app
from modaltune.errors import ConfigError, FederationError
from modaltune.trust.audit import AuditLog
from modaltune.trust.keys import read_private

FLOWER = "1.41.0"
_WRAPPED = {
    "_pull_and_store_message": (
        "state object_store node_config receive get_run get_fab pull_object confirm_message_received trusted_entities"
    ),
    "_push_messages": "state object_store send push_object",
}
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of every Flower process: nothing phones home, nothing is installed at run time."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def check_flower() -> None:
    """Refuse to run beside a Flower whose inner functions are not those that the guard stands in for."""
    found = version("flwr")
    if found != FLOWER:
        raise FederationError(
            f"flwr {found} is installed but the guard of this daemon was made for {FLOWER}; install this project with"
            " its constraints.txt"
        )
    from flwr.supernode import start_client_internal as flower

    for name, expected in _WRAPPED.items():
        function = getattr(flower, name, None)
        if function is None or list(inspect.signature(function).parameters) != expected.split():
            raise FederationError(
                f"flwr {found}: {name} is not the function that the guard of this daemon stands in for; reinstall flwr"
            )


def node_config(settings: Settings) -> str:
    """What the client app is told: the folder with the site's data."""
    folder = str(settings.site_folder)
    if set(folder) & set("\"\\\n'"):
        raise ConfigError(f"site_folder {folder}: has a quote or backslash in its name, which Flower cannot pass on")
    return f'site-folder="{folder}"'


def arguments(home: Home, settings: Settings) -> list[str]:
    """Command line of Flower's SuperNode; secrets are named by their files."""
    return [
        "flower-supernode",
        *("--root-certificates", str(home.authority)),
        *("--superlink", settings.coordinator),
        *("--auth-supernode-private-key", str(home.node_key)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(home.secret)),
        *("--host", settings.runtime_host),
        *("--port", str(settings.runtime_port)),
        *("--node-config", node_config(settings)),
    ]


def install(home: Home, audit: AuditLog) -> None:
    """Put the guard into Flower."""
    check_flower()
    from flwr.supernode import start_client_internal as flower

    from client.guard import Guard

    guard: Any = Guard(home, audit)
    flower._pull_and_store_message, flower._push_messages = guard.pull, guard.push


def why_refused(error: BaseException | None) -> str | None:
    """What is wrong with the coordinator's certificate, in OpenSSL's words; None when something else ended Flower."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return None if error is None else error.verify_message


@app.command()
def run(home: Annotated[Path, typer.Option(help="Folder that modaltune-client init made.")]) -> None:
    """Run the daemon in the foreground."""
    here = Home.find(home)
    settings = here.settings()
    os.environ.update(QUIET | {"FLWR_HOME": str(here.flower)})
    logging.getLogger("flwr").propagate = False  # it writes its own lines
    read_private(here.node_key)
    here.forget_bundles()
    audit = here.open_audit()
    install(here, audit)
    audit.append("daemon started", pid=os.getpid(), flwr=FLOWER)
    from flwr.supernode.cli.flower_supernode import flower_supernode

    sys.argv, refused = arguments(here, settings), None
    try:
        flower_supernode()
    except SystemExit:  # it was told to
        audit.append("daemon stopped", pid=os.getpid())
        raise
    except BaseException as error:  # Flower ends a run with one that is no Exception; whatever it is, this is the end
        logging.getLogger(__name__).exception("the daemon failed")
        refused = why_refused(error)
    with suppress(OSError):  # a full disk may be why; Flower swallows some errors and returns
        if refused is not None:
            audit.append("coordinator certificate refused", coordinator=settings.coordinator, reason=refused)
        audit.append("daemon failed", pid=os.getpid())
    os._exit(1)  # Flower's threads would keep what is left of this process; the supervisor starts another


if __name__ == "__main__":
    run_app(app, "report it")

"""What ``status`` shows: health, services, sites and the latest run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from modaltune.errors import FederationError
from server.coordinator.health import grpc_serving, https_healthy
from server.coordinator.home import Home
from server.coordinator.link import Node, connected
from server.coordinator.runs import Run, all_runs, trouble_of
from server.coordinator.services import service_states
from server.coordinator.sites import load_sites

Document = dict[str, Any]


def overview(home: Home) -> Document:
    """Everything that ``status --json`` prints."""
    settings = home.settings()
    runs = all_runs(home)
    return {
        "coordinator": settings.address,
        "health": {"https": https_healthy(home, settings), "grpc": grpc_serving(settings)},
        "services": [asdict(state) for state in service_states(home)],
        "sites": _sites(home),
        "run": _run(home, runs[-1]) if runs else None,
    }


def _sites(home: Home) -> list[Document]:
    nodes = _nodes(home)
    rows = []
    for name, site in sorted(load_sites(home).items()):
        node = None if site.node_id is None else nodes.get(site.node_id)
        rows.append(
            {
                "site": name,
                "state": site.state,
                "online": None if node is None else node.online,
                "last_seen": node.last_seen.isoformat(timespec="seconds") if node and node.last_seen else None,
            }
        )
    return rows


def _nodes(home: Home) -> Mapping[int, Node]:
    """Node id -> node; nothing is known of them while the SuperLink is down."""
    try:
        with connected(home) as link:
            return {node.node_id: node for node in link.nodes()}
    except FederationError:
        return {}


def _run(home: Home, run: Run) -> Document:
    rows, status = run.rounds(), run.status
    last = rows[-1] if rows else {}
    trouble = None if run.final else trouble_of(home, run)
    if trouble is not None:
        reason = f"{trouble.what}; go on with: modaltune-server resume {run.name}"
        status = status | {"status": "STOPPED", "reason": reason}
    return {
        "run": run.name,
        "status": status["status"],
        "phase": status.get("phase"),
        "round": status.get("round"),
        "rounds": status.get("rounds"),
        "reason": status.get("reason"),
        "contributors": last.get("contributors", []),
        "missing": last.get("missing", []),
        "refused": last.get("refused", {}),
        "bytes_down": sum(row.get("bytes_down", 0) for row in rows),
        "bytes_up": sum(row.get("bytes_up", 0) for row in rows),
    }


def as_tables(found: Document) -> RenderableType:
    """The same for people."""
    services = Table("Service", "State", "Since", title=f"Coordinator {found['coordinator']}")
    for entry in found["services"]:
        services.add_row(entry["name"], entry["state"], _duration(entry["uptime"]))
    for name, healthy in found["health"].items():
        services.add_row(f"{name} health", Text("ok", "green") if healthy else Text("no answer", "red"), "")
    sites = Table("Site", "State", "Online", "Last seen (UTC)", title="Sites")
    for entry in found["sites"]:
        online = {True: Text("yes", "green"), False: Text("no", "yellow"), None: Text("?")}[entry["online"]]
        sites.add_row(entry["site"], entry["state"], online, entry["last_seen"] or "never")
    return Group(services, sites, _run_table(found["run"]) if found["run"] else Text("no run yet"))


def _run_table(run: Document) -> Table:
    table = Table("Run", run["run"], title="Latest run")
    for name in ("status", "phase", "reason"):
        if run[name]:
            table.add_row(name, Text(str(run[name])))
    if run["round"]:
        table.add_row("round", f"{run['round']} of {run['rounds']}")
    table.add_row("contributors", ", ".join(run["contributors"]) or "none yet")
    if run["missing"]:
        table.add_row("missing", ", ".join(run["missing"]))
    for site, reason in run["refused"].items():
        table.add_row(f"refused: {site}", Text(reason))
    table.add_row("sent, received", f"{run['bytes_down'] / 1e6:.1f} MB, {run['bytes_up'] / 1e6:.1f} MB")
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"

"""A run as people watch it: a line for each exchange with the hospitals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modaltune.console import console
from server.coordinator.home import Home
from server.coordinator.runs import Run, follow


def told(home: Home, run: Run) -> dict[str, Any]:
    """Follow a run to its end, one line an exchange; returns its final status."""
    console.print(f"run {run.name}: {run.folder}", markup=False, soft_wrap=True)
    if absent := run.absent:
        console.print(f"not admitted, so missing in every round: {', '.join(absent)}", markup=False, soft_wrap=True)
    console.print(
        "starting; a line follows each exchange with the hospitals, the first when they have said who they are"
    )
    with console.status("waiting for the hospitals"):  # draws nothing where there is no terminal
        try:
            return follow(home, run, _say)
        except KeyboardInterrupt:
            console.print(f"run {run.name} goes on without this command: modaltune-server status", markup=False)
            raise


def _say(row: Mapping[str, Any]) -> None:
    parts = [f"round {row['round']} {row['phase']}: {row['status']}", f"{len(row['contributors'])} hospitals"]
    if row.get("missing"):
        parts.append(f"missing {', '.join(row['missing'])}")
    parts += [f"refused {site} ({reason})" for site, reason in row.get("refused", {}).items()]
    if row.get("loss") is not None:
        parts.append(f"loss {row['loss']:.4f}")
    parts.append(f"{(row['bytes_down'] + row['bytes_up']) / 1e6:.1f} MB, {row['seconds']:.0f} s")
    console.print(", ".join(parts), markup=False, soft_wrap=True)

"""What ``audit verify`` prints, the same on both sides."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from modaltune.console import console, emit_json
from modaltune.trust.audit import AuditSummary, verify_log


def show_audit(path: Path, public_pem: str, json: bool) -> None:
    """Verify an audit log and show what it holds; one that is not intact raises :class:`AuditError`."""
    summary = verify_log(path, public_pem)
    if json:
        emit_json(asdict(summary))
    else:
        console.print(f"{path}: intact, {summary.lines} entries", markup=False, soft_wrap=True)
        console.print(f"last line: sha256 {summary.sha256} (keep it: it names the whole history)", soft_wrap=True)
        console.print(_table(summary))


def _table(summary: AuditSummary) -> Table:
    table = Table("event", "entries", title=f"{summary.first} to {summary.last}" if summary.lines else None)
    for event, count in sorted(summary.events.items()):
        table.add_row(event, str(count))
    return table

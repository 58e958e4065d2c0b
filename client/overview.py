"""What ``modaltune-client status`` shows."""

from __future__ import annotations

import json
from typing import Any

from client.approvals import Approvals
from client.home import Home
from client.services import service_states
from client.usage import Usage


def _news(home: Home) -> dict[str, Any] | None:
    """What the daemon last said of itself; it says so again with the next message if the file was damaged."""
    try:
        return dict(json.loads(home.status.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def overview(home: Home, now: float) -> dict[str, Any]:
    """Programs, contact, approvals and limits of a hospital.

    Args:
        now: seconds since 1970.
    """
    settings = home.settings()
    news = _news(home)
    programs = service_states(home)
    approvals = Approvals(home.approvals)
    unnoted = [
        approval.study.name for approval in approvals.all() if not home.splits_of(approval.study.digest).exists()
    ]
    usage = Usage(home.usage, settings.limits)
    return {
        "site": settings.site,
        "coordinator": settings.coordinator,
        "programs": {program.name: f"{program.state}, {program.uptime:.0f} s" for program in programs} or "not started",
        "paused": home.paused,
        "doing": news["doing"] if news and programs else "nothing",
        "seconds since contact": None if news is None else round(now - news["contact"]),
        "approved": {approval.study.name: approval.study.digest for approval in approvals.all()},
        **({"approvals that cannot be read": unreadable} if (unreadable := approvals.unreadable()) else {}),
        **({"approved before splits were kept": unnoted} if unnoted else {}),
        "rounds answered": {digest[:12]: count for digest, count in usage.counts.rounds.items()},
        "label queries answered": {name[:12]: len(asked) for name, asked in usage.counts.label_queries.items()},
        "probe questions answered": {
            name[:12]: sum(map(len, asked.values())) for name, asked in usage.counts.probes.items()
        },
        "bytes left today": usage.bytes_left,
    }

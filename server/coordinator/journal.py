"""The coordinator's audit log."""

from __future__ import annotations

from modaltune.trust.audit import AuditLog
from modaltune.trust.keys import SigningKey
from server.coordinator.home import Home


def journal(home: Home) -> AuditLog:
    """The log that every command of the coordinator appends to."""
    return AuditLog(home.audit, SigningKey.load(home.signing_key))

"""What was answered so far, held against the hospital's own limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from client.home import Limits
from modaltune.errors import ConfigError, MessageRefused
from modaltune.storage import write_json


class _Counts(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rounds: dict[str, int] = {}
    bytes: dict[str, int] = {}
    agreed: dict[str, dict[str, str]] = {}
    label_queries: dict[str, list[str]] = {}  # approval -> digests of the queries answered
    probes: dict[str, dict[str, list[str]]] = {}  # approval -> task -> digests of the probe questions answered


class Usage:
    """Counters on disk: training rounds of each study, bytes of today; and what was settled under each approval."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.counts = _read(path) if path.is_file() else _Counts()

    @property
    def bytes_left(self) -> int:
        """What may still come in or go out today."""
        return self.limits.bytes_per_day - self.counts.bytes.get(_today(), 0)

    def count_bytes(self, more: int) -> None:
        """Add bytes that come in or go out.

        Raises:
            MessageRefused: they are too many for today.
        """
        if more > self.bytes_left:
            raise self.too_many_bytes()
        self.counts.bytes = {_today(): self.counts.bytes.get(_today(), 0) + more}
        self.write()

    def too_many_bytes(self) -> MessageRefused:
        """The error of a message that would pass the limit of today."""
        return MessageRefused("LimitReached", f"limits.bytes_per_day = {self.limits.bytes_per_day}")

    def count_round(self, study: str) -> None:
        """Add a training round of a study.

        Raises:
            MessageRefused: it is one too many.
        """
        total = self.counts.rounds.get(study, 0) + 1
        if total > self.limits.rounds:
            raise MessageRefused("LimitReached", f"limits.rounds = {self.limits.rounds}")
        self.counts.rounds[study] = total
        self.write()

    def check_agreed(self, approval: str, agreed: Mapping[str, str]) -> None:
        """Refuse a question that differs from those answered before, where all have to be the same.

        Raises:
            MessageRefused: it is another one.
        """
        before = self.counts.agreed.get(approval, {})
        for name, digest in agreed.items():
            if before.get(name, digest) != digest:
                raise MessageRefused("QuestionRefused", f"another {name} went before; approve again to allow this one")

    def agree(self, approval: str, agreed: Mapping[str, str]) -> None:
        """Remember what an answered question settles."""
        before = self.counts.agreed.get(approval, {})
        if not agreed.items() <= before.items():
            self.counts.agreed[approval] = before | dict(agreed)
            self.write()

    def write(self) -> None:
        """Keep the counters."""
        write_json(self.path, json.loads(self.counts.model_dump_json()))


def _read(path: Path) -> _Counts:
    try:
        return _Counts.model_validate_json(path.read_bytes())
    except ValidationError:
        raise ConfigError(
            f"{path}: damaged; put it back from a backup. Without it, what was answered counts from nothing again"
        ) from None


def _today() -> str:
    return datetime.now(UTC).date().isoformat()

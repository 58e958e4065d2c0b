"""The Flower bundle that the coordinator submits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from modaltune.bundle import bundle_files


@dataclass(frozen=True)
class Bundle:
    """A Flower bundle (FAB) and the SHA-256 that hospitals approve."""

    content: bytes
    sha256: str


def build_bundle() -> Bundle:
    """The bundle of what is installed here."""
    from flwr.cli.build import build_fab_from_files

    content, _ = build_fab_from_files(bundle_files())
    return Bundle(content, hashlib.sha256(content).hexdigest())

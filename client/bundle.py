"""The hash of the Flower bundle that this installation would make: the one that a hospital approves."""

from __future__ import annotations

from hashlib import sha256

from modaltune.bundle import bundle_files


def installed_bundle() -> str:
    """SHA-256 of the bundle of what is installed here; nothing that the coordinator says goes into it."""
    from flwr.cli.build import build_fab_from_files

    content, _ = build_fab_from_files(bundle_files())
    return sha256(content).hexdigest()

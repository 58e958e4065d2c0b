"""What ``rounds.jsonl`` says of a training round: losses, steps, and the cases behind each part of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def parameter_group(key: str) -> str:
    """The part of the model a parameter belongs to, as reports name it."""
    parts = key.split(".")
    if parts[1] in ("missing", "interactions") or parts[0] == "head":
        return ".".join(parts[1:3]) if parts[0] != "head" else ".".join(parts[:3])
    return f"task_tokens.{parts[3]}" if parts[1:3] == ["task_tokens", "vectors"] else parts[1]


def training_log(
    examples: Mapping[str, Mapping[str, int]], metrics: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """What the log says of a training round beside who took part.

    Args:
        examples: site -> trained array -> cases behind it.
        metrics: site -> those of its reply.
    """
    groups: dict[str, dict[str, int]] = {}
    for site in sorted(examples):
        for key, count in examples[site].items():
            row = groups.setdefault(parameter_group(key), dict.fromkeys(sorted(examples), 0))
            row[site] = max(row[site], count)
    trained = {site: row for site, row in metrics.items() if row["train-cases"]}
    cases = sum(row["train-cases"] for row in trained.values())
    checked = sum(row["val-cases"] for row in metrics.values())
    return {
        "loss": sum(row["loss"] * row["train-cases"] for row in trained.values()) / cases if cases else None,
        "losses": {site: row["loss"] for site, row in trained.items()},
        "val_loss": sum(row["val-loss-sum"] for row in metrics.values()) / checked if checked else None,
        "steps": {site: int(row["steps"]) for site, row in metrics.items()},
        "keys": groups,
    }

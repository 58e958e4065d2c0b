"""A finished federation as its folder holds it: read there, whether it ended just now or before an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modaltune.data.preprocessing import Preprocessing
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, load_model
from modaltune.models.modaltune import trainable_state
from modaltune.storage import digest_state, read_json_lines
from server.report_data import training_rounds

_ENDED = ("OK", "DEGRADED")


@dataclass(frozen=True, kw_only=True)
class Federated:
    """What a federation left.

    Attributes:
        status: ``OK`` or ``DEGRADED``.
        steps: optimiser steps over all hospitals and rounds.
        modalities: hospital -> what it said it has.
        weights_hash: of the trained weights.
    """

    learner: Learner
    preprocessing: Preprocessing
    status: str
    steps: int
    modalities: Mapping[str, tuple[str, ...]]
    weights_hash: str

    @classmethod
    def read(cls, folder: Path) -> Federated:
        """The federation of a folder that :func:`finished` is true of."""
        learner, _, preprocessing = load_model(folder / "model")
        rows = read_json_lines(folder / "rounds.jsonl")
        sites: dict[str, dict[str, Any]] = {}
        for row in rows:
            sites |= row.get("sites", {}) if row["phase"] == "capability" else {}
        return cls(
            learner=learner,
            preprocessing=preprocessing,
            status=_status(folder),
            steps=sum(steps for row in training_rounds(rows) for steps in row["steps"].values()),
            modalities={site: tuple(found["modalities"]) for site, found in sites.items()},
            weights_hash=digest_state(trainable_state(learner)),
        )


def finished(folder: Path, study: Study) -> bool:
    """Whether a folder holds a federation of this study that ended with a model."""
    model = folder / "model" / "study.json"
    if not model.is_file() or model.read_text(encoding="utf-8") != study.to_json():
        return False
    return _status(folder) in _ENDED


def _status(folder: Path) -> str:
    return str(json.loads((folder / "status.json").read_text(encoding="utf-8"))["status"])

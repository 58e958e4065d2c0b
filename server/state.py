"""What the server needs to go on after a crash: written atomically after each round, removed when the run is done."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import FederationError, ModelFileError
from modaltune.federation.average import State
from modaltune.federation.study import Study
from modaltune.storage import digest_file, load_state, save_state, write_json, write_text

logger = logging.getLogger(__name__)
_KEPT = 2
_FACTS = {"round", "usual", "steps", "degraded", "lines", "sha256"}


@dataclass(frozen=True, kw_only=True)
class Validated:
    """Weights of a round, scored by the hospitals in the next one.

    Attributes:
        number: of the round that they come from.
        losses: hospital -> sum of the losses of its validation cases, and how many these are.
    """

    number: int
    weights: State
    losses: Mapping[str, tuple[float, float]]

    def beats(self, other: Validated | None) -> bool:
        """Whether its mean loss is less, over the hospitals that validated both."""
        if other is None:
            return True
        shared = sorted({*self.losses} & {*other.losses})
        ours, theirs = (sum(found.losses[site][0] for site in shared) for found in (self, other))
        return ours < theirs


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A federation after some rounds.

    Attributes:
        number: finished training rounds.
        weights: of the model, after them.
        moments: of the server's optimiser.
        usual: median length of the last round's updates.
        steps: optimiser steps that the sites have taken.
        degraded: whether a round went without a site.
        best: weights with the least validation loss so far, where the study keeps them.
        lines: of ``rounds.jsonl`` that belong to it; later ones are from a round that was cut off.
    """

    number: int
    weights: State
    moments: Mapping[str, State] = field(default_factory=dict)
    usual: float | None = None
    steps: int = 0
    degraded: bool = False
    lines: int = 0
    best: Validated | None = None


class ServerState:
    """Files of a run that make it possible to go on: study, preprocessing, and the newest two rounds."""

    def __init__(self, out: Path, study: Study) -> None:
        self.out, self.study, self.folder = out, study, out / "state"

    def begin(self) -> None:
        """Write the study; a folder of another study is refused."""
        path = self.out / "study.json"
        if path.is_file() and path.read_text(encoding="utf-8") != self.study.to_json():
            raise FederationError(f"{self.out}: holds a run of another study; choose another folder")
        write_text(path, self.study.to_json())

    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing that the run began with."""
        path = self.out / "preprocessing.json"
        return Preprocessing.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None

    def keep(self, progress: Progress) -> None:
        """Write the state after a round; the earlier one stays until this one is complete."""
        tensors = {f"weights/{key}": torch.from_numpy(value) for key, value in progress.weights.items()}
        for name, moment in progress.moments.items():
            tensors |= {f"moments/{name}/{key}": torch.from_numpy(value) for key, value in moment.items()}
        best = progress.best
        if best is not None:
            tensors |= {f"best/{key}": torch.from_numpy(value) for key, value in best.weights.items()}
        save_state(self._arrays(progress.number), tensors)
        facts = {
            "round": progress.number,
            "usual": progress.usual,
            "steps": progress.steps,
            "degraded": progress.degraded,
            "lines": progress.lines,
            "best": None if best is None else {"number": best.number, "losses": best.losses},
            "sha256": digest_file(self._arrays(progress.number)),
        }
        write_json(self._facts(progress.number), facts)
        for path in self.folder.glob("*"):
            if path.stem.isdigit() and int(path.stem) <= progress.number - _KEPT:
                path.unlink()

    def newest(self) -> Progress | None:
        """The last complete round, with the round log cut back to it; None when there is none."""
        for path in sorted(self.folder.glob("*.json"), reverse=True):
            facts, arrays = _facts_in(path), path.with_suffix(".safetensors")
            if facts is not None and arrays.is_file() and digest_file(arrays) == facts["sha256"]:
                self._cut_log(int(str(facts["lines"])))
                return _progress(facts, arrays)
            logger.warning("%s: damaged, so the run goes on from an earlier round if there is one", path)
        if any(self.folder.glob("*.json")):
            raise ModelFileError(f"{self.folder}: no state in it matches its checksum; restore it from a backup")
        return None

    def done(self) -> None:
        """Remove what is needed only to go on."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_lines(self) -> int:
        """Lines of the round log."""
        path = self.out / "rounds.jsonl"
        return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0

    def _cut_log(self, lines: int) -> None:
        path = self.out / "rounds.jsonl"
        kept = path.read_text(encoding="utf-8").splitlines()[:lines] if path.is_file() else []
        write_text(path, "".join(f"{line}\n" for line in kept))

    def _arrays(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _facts(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def _facts_in(path: Path) -> dict[str, Any] | None:
    """The facts of a state; None when they are damaged, as after a power cut."""
    try:
        facts = json.loads(path.read_bytes())
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and set(facts) >= _FACTS else None


def _progress(facts: Mapping[str, Any], arrays: Path) -> Progress:
    weights, best, moments = State(), State(), dict[str, State]()
    for key, value in load_state(arrays).items():
        kind, _, rest = key.partition("/")
        if kind in ("weights", "best"):
            (weights if kind == "weights" else best)[rest] = value.numpy()
        else:
            name, _, parameter = rest.partition("/")
            moments.setdefault(name, State())[parameter] = value.numpy()
    usual, kept = facts["usual"], facts.get("best")
    return Progress(
        number=int(str(facts["round"])),
        weights=weights,
        moments=moments,
        usual=None if usual is None else float(str(usual)),
        steps=int(str(facts["steps"])),
        degraded=bool(facts["degraded"]),
        lines=int(str(facts["lines"])),
        best=None if kept is None else Validated(weights=best, **kept),
    )

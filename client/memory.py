"""What a site remembers between rounds, on its own disk, never sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from torch import Tensor

from modaltune.evaluation.probes.sums import SiteCases
from modaltune.federation.average import State
from modaltune.federation.wire import Packed
from modaltune.storage import canonical_json, load_state, save_state, write_bytes, write_text

_KEPT = 2  # a round that is repeated after a crash starts from the memory of the round before
_OPTIMISER, _ROUNDING, _DRIFT = "optimiser/", "rounding/", "drift/"


Cases = Mapping[str, SiteCases]
"""Training cases by task, as a probe sees them."""


@dataclass(frozen=True, kw_only=True)
class TrainingReply:
    """A site's update with its metrics."""

    arrays: Packed
    examples: dict[str, int]
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a round of training left behind.

    Attributes:
        optimiser: its running averages.
        rounding: what rounding took from the reply.
        drift: see :meth:`modaltune.drift.Drift.state`.
        round_number: of that round; 0 = there was none.
    """

    optimiser: Mapping[str, Tensor] = field(default_factory=dict)
    rounding: State = field(default_factory=dict)
    drift: Mapping[str, Tensor] = field(default_factory=dict)
    round_number: int = 0


class RoundMemory:
    """One safetensors file a round in a folder of the study; the newest two stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, round_number: int) -> Memory:
        """The memory as it was before a round, empty when there is none."""
        earlier = [number for number in self._rounds() if number < round_number]
        state = load_state(self._path(earlier[-1])) if earlier else {}
        return Memory(
            optimiser={k.removeprefix(_OPTIMISER): v for k, v in state.items() if k.startswith(_OPTIMISER)},
            rounding={k.removeprefix(_ROUNDING): v.numpy() for k, v in state.items() if k.startswith(_ROUNDING)},
            drift={k.removeprefix(_DRIFT): v for k, v in state.items() if k.startswith(_DRIFT)},
            round_number=earlier[-1] if earlier else 0,
        )

    def keep(self, memory: Memory) -> None:
        """Write the memory after a round, atomically, and forget old and later ones."""
        round_number = memory.round_number
        state = {f"{_OPTIMISER}{name}": value for name, value in memory.optimiser.items()}
        state |= {f"{_ROUNDING}{name}": torch.from_numpy(value) for name, value in memory.rounding.items()}
        state |= {f"{_DRIFT}{name}": value for name, value in memory.drift.items()}
        if state:
            save_state(self._path(round_number), state)
        for number in self._rounds():
            if number <= round_number - _KEPT or number > round_number:
                self._path(number).unlink(missing_ok=True)

    def journal(self, question: str, reply: TrainingReply) -> None:
        """Keep a finished reply until the next one, to be sent again when the same question comes again."""
        text = {"question": question, "examples": dict(reply.examples), "metrics": dict(reply.metrics)}
        arrays = {name: np.asarray(value, order="C") for name, value in reply.arrays.items()}
        write_bytes(self._journal, save(arrays, metadata={"reply": canonical_json(text)}))

    def journalled(self, question: str) -> TrainingReply | None:
        """The reply to a question that was answered last; None for any other question."""
        if not self._journal.is_file():
            return None
        try:
            with safe_open(self._journal, framework="numpy") as stored:
                text = json.loads(stored.metadata()["reply"])
                if text["question"] != question:
                    return None
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, TypeError, KeyError, ValueError):
            return None  # it can be computed again
        return TrainingReply(arrays=arrays, examples=text["examples"], metrics=text["metrics"])

    @property
    def most_patches(self) -> int | None:
        """Patches of a case that the GPU has room for; None = no fewer than the study says."""
        text = self._limit.read_text(encoding="utf-8") if self._limit.is_file() else ""
        return int(text) if text.isdecimal() else None

    def limit_patches(self, limit: int | None) -> None:
        """Remember that the GPU has room for this many patches of a case, or forget it."""
        if limit is None:
            self._limit.unlink(missing_ok=True)
        else:
            write_text(self._limit, str(limit))

    def agree(self, round_number: int, digest: str) -> bool:
        """Whether a preprocessing digest is the one that this site saw first; a first round begins anew."""
        path = self.folder / "preprocessing.sha256"
        if round_number <= 1 or not path.is_file():
            write_text(path, digest)
        return path.read_text(encoding="utf-8") == digest

    @property
    def _limit(self) -> Path:
        return self.folder / "patches"

    @property
    def _journal(self) -> Path:
        return self.folder / "journal" / "reply.safetensors"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    def _path(self, round_number: int) -> Path:
        return self.folder / f"{round_number:06d}.safetensors"


class ProbeMemory:
    """Embeddings of the training cases under the one model that probes are about: a process answers one question."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, name: str, cases: Cases) -> None:
        """Write them, atomically, and forget those of other models."""
        arrays = dict[str, NDArray[np.generic]]()
        for task, held in cases.items():
            arrays |= {f"{task}.features": held.features, f"{task}.group": held.group}
            arrays |= {} if held.months is None else {f"{task}.months": held.months}
        write_bytes(self._path(name), save({key: np.asarray(value, order="C") for key, value in arrays.items()}))
        for path in self.folder.glob("*.safetensors"):
            if path != self._path(name):
                path.unlink()

    def read(self, name: str) -> dict[str, SiteCases] | None:
        """What was kept; None when there is nothing that can be read."""
        try:
            arrays = load_file(self._path(name))
        except (SafetensorError, OSError):
            return None
        tasks = [key.removesuffix(".group") for key in arrays if key.endswith(".group")]
        return {
            task: SiteCases(
                features=arrays[f"{task}.features"],
                group=arrays[f"{task}.group"],
                months=arrays.get(f"{task}.months"),
            )
            for task in tasks
        }

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

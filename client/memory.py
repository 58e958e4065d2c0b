"""What a site remembers between rounds, on its own disk, never sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from modaltune.federation.average import State
from modaltune.storage import load_state, save_state, write_text

_KEPT = 2  # a round that is repeated after a crash starts from the memory of the round before
_OPTIMISER, _ROUNDING = "optimiser/", "rounding/"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The optimiser's running averages, and what rounding took from the last reply."""

    optimiser: Mapping[str, Tensor] = field(default_factory=dict)
    rounding: State = field(default_factory=dict)


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
        )

    def keep(self, round_number: int, memory: Memory) -> None:
        """Write the memory after a round, atomically, and forget old and later ones."""
        state = {f"{_OPTIMISER}{name}": value for name, value in memory.optimiser.items()}
        state |= {f"{_ROUNDING}{name}": torch.from_numpy(value) for name, value in memory.rounding.items()}
        if state:
            save_state(self._path(round_number), state)
        for number in self._rounds():
            if number <= round_number - _KEPT or number > round_number:
                self._path(number).unlink(missing_ok=True)

    def agree(self, round_number: int, digest: str) -> bool:
        """Whether a preprocessing digest is the one that this site saw first; a first round begins anew."""
        path = self.folder / "preprocessing.sha256"
        if round_number <= 1 or not path.is_file():
            write_text(path, digest)
        return path.read_text(encoding="utf-8") == digest

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    def _path(self, round_number: int) -> Path:
        return self.folder / f"{round_number:06d}.safetensors"

"""What a site remembers between rounds: its optimiser's running averages, on its own disk, never sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from modaltune.storage import load_state, save_state

_KEPT = 2  # a round that is repeated after a crash starts from the memory of the round before


class OptimiserMemory:
    """One safetensors file a round in a folder of the study; the newest two stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, round_number: int) -> dict[str, Tensor]:
        """The averages as they were before a round, {} when there are none."""
        earlier = [number for number in self._rounds() if number < round_number]
        return load_state(self._path(earlier[-1])) if earlier else {}

    def keep(self, round_number: int, state: Mapping[str, Tensor]) -> None:
        """Write the averages after a round, atomically, and forget old and later ones."""
        save_state(self._path(round_number), state)
        for number in self._rounds():
            if number <= round_number - _KEPT or number > round_number:
                self._path(number).unlink(missing_ok=True)

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    def _path(self, round_number: int) -> Path:
        return self.folder / f"{round_number:06d}.safetensors"

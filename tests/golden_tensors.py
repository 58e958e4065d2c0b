"""The tensors of a golden file, which remember which of them were read, and how near to them ours must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

Result = tuple[str, float]  # what was compared, error as a share of what is allowed


def compare_activation(name: str, ours: Tensor, golden: Tensor) -> Result:
    allowed = max(2e-5, 2e-6 * float(golden.abs().max())) + 1e-4 * golden.abs()
    return name, float(((ours.detach() - golden).abs() / allowed).max())


def _gradient(name: str, ours: Tensor | None, golden: Tensor, largest: float) -> Result:
    ours = torch.zeros_like(golden) if ours is None else ours
    return name, float(((ours.detach() - golden).abs() / (1e-5 * largest + 1e-3 * golden.abs())).max())


def compare_gradients(ours: Mapping[str, Tensor | None], golden: Mapping[str, Tensor]) -> Iterator[Result]:
    largest = max(float(value.abs().max()) for value in golden.values())
    for name, value in golden.items():
        yield _gradient(name, ours[name], value, largest)


class GoldenTensors(Mapping[str, Tensor]):
    """Tensors by name; a part of them shares the memory of the whole."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "", read: set[str] | None = None) -> None:
        self._tensors, self._prefix = tensors, prefix
        self._read: set[str] = set() if read is None else read

    def __getitem__(self, name: str) -> Tensor:
        value = self._tensors[self._prefix + name]
        self._read.add(self._prefix + name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._tensors

    def part(self, prefix: str) -> GoldenTensors:
        """Those whose names begin with ``prefix``, without it."""
        return GoldenTensors(self._tensors, self._prefix + prefix, self._read)

    def unused(self, *names: str) -> None:
        """Names, or prefixes of names, that no check needs to read."""
        self._read.update(self._prefix + name for name in self if name.startswith(names))

    def unread(self) -> list[str]:
        """Names that nobody read."""
        return sorted(set(self) - {name.removeprefix(self._prefix) for name in self._read})

"""Several processes, one GPU each, on one model: every process takes a share of each batch, gradients are summed.

``torchrun --nproc-per-node 2 --no-python modaltune train ...`` starts them. Batches are drawn the same way everywhere,
so the number of processes changes rounding and dropout masks, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among its peers."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a batch."""
        return list(items[self.rank :: self.count])

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by the sum over processes; one that no process has stays absent."""
        if self.count == 1:
            return
        reached = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        dist.all_reduce(reached)
        used = [p for p, count in zip(parameters, reached.tolist(), strict=True) if count]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in used])
        dist.all_reduce(flat)
        for parameter, gradient in zip(used, flat.split([p.numel() for p in used]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()

    def sum_number(self, value: float, device: torch.device) -> float:
        """Sum of a number over processes."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total)

    def gather(self, value: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank."""
        if self.count == 1:
            return [value]
        found: list[Tensor | None] = [None] * self.count
        dist.all_gather_object(found, value)
        return [part for part in found if part is not None]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()


def workers() -> Workers:
    """This process as torch.distributed knows it; alone when that was not started."""
    if not dist.is_available() or not dist.is_initialized():
        return Workers()
    return Workers(rank=dist.get_rank(), count=dist.get_world_size())


@contextmanager
def joined() -> Iterator[Workers]:
    """Join the peers that torchrun started, each on its own GPU when there is one; alone without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield workers()
    finally:
        dist.destroy_process_group()

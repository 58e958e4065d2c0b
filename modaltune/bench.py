"""Benchmarks: ratios against the plain path in the same run, and cost as work grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from modaltune.data.batch import Batch
from modaltune.encoders.dilated_attention import DilatedConfig, dilated_attention
from modaltune.encoders.gene import GeneEncoderConfig
from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.encoders.small import small_slide_encoder
from modaltune.models.adapters import AdapterConfig
from modaltune.models.modaltune import ModalTune, ModalTuneConfig, trainable_state

_GENES, _SETS, _MEMBERSHIPS = 4987, 331, 9731  # the published gene sets
_REPEATS = 3


def bench_kernels() -> dict[str, Any]:
    """Forward and backward of dilated attention, naive against the fast kernel, one thread, 16 heads of 48."""
    torch.set_num_threads(1)
    out = {}
    for tokens in (257, 1025, 2049):
        seconds = {kernel: _best(lambda k=kernel, n=tokens: _attention(k, n)) for kernel in ("naive", "cpu_flash")}  # type: ignore[misc]
        out[str(tokens)] = {**seconds, "speedup": seconds["naive"] / seconds["cpu_flash"]}
    return out


def bench_step() -> dict[str, Any]:
    """One forward and backward of the built-in configuration as patches and tasks grow, one thread."""
    torch.set_num_threads(1)
    out = {}
    for tasks in (1, 3):
        for patches in (64, 256, 1024):
            out[f"{tasks} tasks, {patches} patches"] = {"seconds": _best(_step(tasks, patches))}
    return out


def bench_wire() -> dict[str, Any]:
    """Trained parameters and megabytes of one message, full Prov-GigaPath configuration with the compact encoder."""
    sizes = [_MEMBERSHIPS // _SETS + (index < _MEMBERSHIPS % _SETS) for index in range(_SETS)]
    indices = tuple(tuple((start + k) % _GENES for k in range(size)) for start, size in enumerate(sizes))
    with torch.device("meta"):
        encoder = LongNetViT(LongNetConfig())
    config = ModalTuneConfig(
        tasks=("one", "two", "three"),
        gene_indices=indices,
        adapter=AdapterConfig(),
        gene_encoder=GeneEncoderConfig(tokens=64),
    )
    state = trainable_state(ModalTune(encoder, config))
    count = sum(value.numel() for value in state.values())
    return {"parameters": count, "mb_fp32": 4 * count / 1e6}


def bench_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Results as a table: one line a measurement."""
    table = Table("Benchmark", "Case", "Measured")
    for name, cases in results.items():
        for case, value in cases.items():
            values = value if isinstance(value, Mapping) else {"": value}
            table.add_row(name, case, ", ".join(f"{key} {number:.4g}".strip() for key, number in values.items()))
    return table


def _best(work: Callable[[], None]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def _attention(kernel: str, tokens: int) -> None:
    config = DilatedConfig(kernel=kernel)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 16, tokens, 48, generator=generator).requires_grad_() for _ in range(3))
    dilated_attention(q, k, v, config).sum().backward()


def _step(tasks: int, patches: int) -> Callable[[], None]:
    names = tuple(f"task{index}" for index in range(tasks))
    config = ModalTuneConfig(
        tasks=names,
        gene_indices=tuple(tuple(range(start, start + 10)) for start in range(0, 200, 10)),
        output_width=64,
        adapter=AdapterConfig(groups=((0, 1), (2, 3)), heads=4),
        gene_encoder=GeneEncoderConfig(),
    )
    model = ModalTune(small_slide_encoder(32), config)
    batch = Batch(
        patches=torch.zeros(1, patches, 32),
        cells=torch.arange(patches)[None, :, None].expand(1, patches, 2) % 1000,
        lengths=torch.tensor([patches]),
        expression=torch.zeros(1, 200),
        has_expression=torch.tensor([True]),
        clinical=torch.zeros(1, 0),
    )

    def work() -> None:
        out: Tensor = model.embed(batch, names)
        out.sum().backward()

    return work

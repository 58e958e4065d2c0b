"""The parts of a step on one thread: attention, gene encoder, positions; and how a step's cost grows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from modaltune.benchmarks import reference
from modaltune.benchmarks.full import GENES, PAPER, gene_indices
from modaltune.data.batch import Batch
from modaltune.encoders.attention_kernels import Kernel, available_kernels, kernel_for
from modaltune.encoders.dilated_attention import DilatedConfig, dilated_attention
from modaltune.encoders.gene import PaperGeneEncoder
from modaltune.encoders.positions import position_embedding
from modaltune.encoders.small import small_slide_encoder
from modaltune.models.adapters import AdapterConfig
from modaltune.models.modaltune import ModalTune, ModalTuneConfig

_HEADS, _WIDTH = 16, 48  # of Prov-GigaPath
_REPEATS = 3
# operators that start work, against views, allocations and wrappers
_COMPUTING = frozenset(
    {"add", "add_", "addmm", "bmm", "mm", "mul", "sum", "elu", "elu_backward", "index", "index_select", "index_put_"}
    | {"cat", "copy_", "fill_", "embedding_dense_backward"}
)
Results = dict[str, dict[str, Any]]


def bench_kernels() -> Results:
    """Attention of 16 heads of 48, forward and backward: by definition, and our kernels; then all branches together."""
    torch.set_num_threads(1)
    fast = kernel_for("auto", torch.empty(0), masked=False)
    out: Results = {}
    for tokens in (512, 1024, 2048):
        plain, ours = _best(_plain(tokens)), _best(_kernel(fast, tokens))
        out[f"one segment, {tokens} tokens"] = {"speedup": plain / ours, "plain_s": plain, f"{fast.name}_s": ours}
    for tokens in (1025, 2049):
        plain = _best(_dilated(reference.index_gather_attention, "naive", tokens))
        gather = _best(_dilated(reference.index_gather_attention, "auto", tokens))
        ours = _best(_dilated(dilated_attention, "auto", tokens))
        out[f"all branches, {tokens} tokens"] = {
            "speedup": plain / ours,
            "speedup_same_kernel": gather / ours,
            "plain_s": plain,
            "ours_s": ours,
        }
    return out


def bench_genes() -> Results:
    """The published gene encoder, one case, forward and backward: all of 331 sets at once, and one by one.

    Operators are those of the layers that each set has for itself.
    """
    torch.set_num_threads(1)
    batched = PaperGeneEncoder(gene_indices(), 768, PAPER).eval()
    apart = reference.SetBySet(batched, gene_indices())
    expression = torch.randn(1, GENES, generator=torch.Generator().manual_seed(0))

    def step(part: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def work() -> None:
            for encoder in (batched, apart):
                encoder.zero_grad(set_to_none=True)
            part(expression).sum().backward()

        return work

    apart_calls, ours_calls = _operators(step(apart.pathways)), _operators(step(batched.pathways))
    apart_s, ours_s = _best(step(apart)), _best(step(batched))
    return {
        "331 sets": {
            "speedup": apart_s / ours_s,
            "fewer_operators": apart_calls / ours_calls,
            "operators_set_by_set": apart_calls,
            "operators": ours_calls,
            "seconds": ours_s,
        }
    }


def bench_positions() -> Results:
    """Positions of 16,384 patches at width 768: computed on demand, and from the table of a 1000 x 1000 grid."""
    torch.set_num_threads(1)
    place = torch.arange(16384)
    cells = torch.stack([place // 128, place % 128], dim=1)
    grid = 200  # the table of the whole grid is 25 times this one and takes 3.07 GB
    side = torch.arange(grid)
    every = torch.stack(torch.meshgrid(side, side, indexing="ij"), dim=-1).flatten(0, 1)
    started = time.process_time()
    table = position_embedding(every, 768)
    built = (time.process_time() - started) * 1000**2 / grid**2
    demand = _best(lambda: position_embedding(cells, 768))
    lookup = _best(lambda: table[cells[:, 0] * grid + cells[:, 1]])
    return {
        "16384 patches": {
            "table_mb": 4 * 768 * (1000**2 + 1) / 1e6,
            "on_demand_mb": 4 * 768 * len(cells) / 1e6,
            "table_build_s": built,
            "lookup_s": lookup,
            "on_demand_s": demand,
        }
    }


def bench_growth() -> Results:
    """Forward and backward of the built-in configuration as patches, tasks and genes grow."""
    torch.set_num_threads(1)
    out: Results = {}
    for patches in (256, 1024, 4096, 16384):
        out[f"{patches} patches"] = {"seconds": _best(_small_step(1, patches, 200), repeats=2)}
    for tasks in (1, 2, 4, 8):
        out[f"{tasks} tasks"] = {"seconds": _best(_small_step(tasks, 256, 200))}
    for genes in (200, 1000, 5000):
        out[f"{genes} genes"] = {"seconds": _best(_small_step(1, 256, genes))}
    return out


def _best(work: Callable[[], object], repeats: int = _REPEATS) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def _operators(work: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as record:
        work()
    names = Counter({event.key.removeprefix("aten::"): event.count for event in record.key_averages()})
    return sum(count for name, count in names.items() if name in _COMPUTING)


def _qkv(tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, _HEADS, tokens, _WIDTH, generator=generator).requires_grad_() for _ in range(3)]


def _plain(tokens: int) -> Callable[[], None]:
    q, k, v = _qkv(tokens)

    def work() -> None:
        reference.plain_attention(q, k, v)[0].sum().backward()

    return work


def _kernel(kernel: Kernel, tokens: int) -> Callable[[], None]:
    assert kernel.name in available_kernels()
    q, k, v = (x.detach() for x in _qkv(tokens))

    def work() -> None:
        out, lse = kernel.forward(q, k, v, None)
        kernel.backward(torch.ones_like(out), q, k, v, out, lse, None)

    return work


def _dilated(attention: Callable[..., Tensor], kernel: str, tokens: int) -> Callable[[], None]:
    q, k, v = _qkv(tokens)
    config = DilatedConfig(kernel=kernel)

    def work() -> None:
        attention(q, k, v, config).sum().backward()

    return work


def _small_step(tasks: int, patches: int, genes: int) -> Callable[[], None]:
    names = tuple(f"task{index}" for index in range(tasks))
    config = ModalTuneConfig(
        tasks=names,
        gene_indices=tuple(tuple(range(start, start + 10)) for start in range(0, genes, 10)),
        output_width=64,
        adapter=AdapterConfig(groups=((0, 0), (1, 1)), heads=4),
    )
    model = ModalTune(small_slide_encoder(32), config)
    place = torch.arange(patches)
    batch = Batch(
        patches=torch.zeros(1, patches, 32),
        cells=torch.stack([place // 1000, place % 1000], dim=1).unsqueeze(0),
        lengths=torch.tensor([patches]),
        expression=torch.zeros(1, genes),
        has_expression=torch.tensor([True]),
        clinical=torch.zeros(1, 0),
    )

    def work() -> None:
        model.embed(batch, names).sum().backward()

    return work

"""One optimiser step's gradients at the full configuration, each way in a process of its own (one thread, fp32).

``sequential`` is the plain path of :mod:`modaltune.benchmarks.reference`; ``exact``, ``joint`` and ``late`` are ours.
Memory is the peak resident size above the loaded model; seconds are of one thread, the faster of two steps.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from modaltune.benchmarks import reference
from modaltune.benchmarks.full import EVERYWHERE, LATE, PAPER, full_case, full_learner, full_model, gene_indices
from modaltune.benchmarks.memory import forget_peak, in_own_process, peak_megabytes
from modaltune.data.batch import CaseTensors, collate
from modaltune.encoders import longnet
from modaltune.encoders.gene import PaperGeneEncoder
from modaltune.models.learner import Learner
from modaltune.step import accumulate_gradients

WAYS = ("sequential", "exact", "joint", "late")


def bench_step(patches: int = 1024, tasks: int = 3) -> dict[str, Any]:
    """Speed-up and share of memory of each way against the sequential path."""
    found = {way: in_own_process("modaltune.benchmarks.step", way, patches, tasks) for way in WAYS}
    plain = found["sequential"]
    out: dict[str, Any] = {
        way: {
            "speedup": plain["seconds"] / found[way]["seconds"],
            "memory_ratio": found[way]["megabytes"] / plain["megabytes"],
            **found[way],
        }
        for way in WAYS[1:]
    }
    return out | {"sequential": plain}


def bench_build() -> dict[str, Any]:
    """Peak memory of building the full model above torch itself, with the published gene encoder."""
    return {"full model": {"megabytes": in_own_process("modaltune.benchmarks.step", "build", 0, 3)["megabytes"]}}


def measure(way: str, patches: int, tasks: int) -> dict[str, float]:
    """Seconds and megabytes of one way, in this process."""
    torch.set_num_threads(1)
    if way == "build":
        before = peak_megabytes()
        full_model(tasks, genes=PAPER)
        return {"megabytes": peak_megabytes() - before}
    learner, case = _prepare(way, patches, tasks)
    forget_peak()
    before = peak_megabytes()
    seconds = []
    for _ in range(2):
        learner.zero_grad(set_to_none=True)
        started = time.process_time()
        if way == "sequential":
            reference.sequential_step(learner, case)
        else:
            accumulate_gradients(learner, [case], "contrastive")
        seconds.append(time.process_time() - started)
    gradient = sum(p.grad.nbytes for p in learner.parameters() if p.grad is not None) / 1e6
    return {"seconds": min(seconds), "megabytes": peak_megabytes() - before, "of_which_gradients": gradient}


def _prepare(way: str, patches: int, tasks: int) -> tuple[Learner, CaseTensors]:
    late = way == "late"
    model = full_model(
        tasks, genes=PAPER, groups=LATE if late else EVERYWHERE, task_pass="joint" if way == "joint" else "exact"
    ).eval()
    case = full_case(patches, tasks)
    if way == "sequential":
        assert isinstance(model.gene_encoder, PaperGeneEncoder)
        model.gene_encoder = reference.SetBySet(model.gene_encoder, gene_indices())
        vars(longnet)["dilated_attention"] = reference.index_gather_attention
    if late:
        with torch.no_grad():
            tokens, _ = model.image_tokens(collate([case]))
        case = CaseTensors(**{**vars(case), "tokens": tokens[0].half(), "patches": case.patches[:0]})
    return full_learner(model), case


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))

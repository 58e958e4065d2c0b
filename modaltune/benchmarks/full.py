"""The full configuration: Prov-GigaPath's slide encoder (12 layers, width 768) and 4,987 genes in 331 sets."""

from __future__ import annotations

from statistics import NormalDist

import torch

from modaltune.data.batch import CaseTensors
from modaltune.encoders.gene import GeneEncoderConfig
from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.models.adapters import AdapterConfig, Groups
from modaltune.models.learner import Learner
from modaltune.models.modaltune import ModalTune, ModalTuneConfig
from modaltune.tasks.head import TextHead, candidate_targets

GENES, SETS, MEMBERSHIPS = 4987, 331, 9731
_MEDIAN, _LARGEST = 8, 199
PAPER = GeneEncoderConfig(kind="paper", latent=256, depth=3, tokens=64, dropout=0.25)
COMPACT = GeneEncoderConfig(kind="compact", tokens=64)
EVERYWHERE: Groups = ((0, 3), (4, 7), (8, 11))
LATE: Groups = ((4, 7), (8, 11))


def gene_indices() -> tuple[tuple[int, ...], ...]:
    """Sets with the published number of genes, sets and memberships, median and largest size."""
    spread = [NormalDist().inv_cdf((index + 0.5) / SETS) for index in range(SETS)]
    sizes = [min(_LARGEST, max(1, round(_MEDIAN * 2.718281828 ** (1.7 * z)))) for z in spread]
    place = SETS // 2
    while (rest := MEMBERSHIPS - sum(sizes)) != 0:  # make the total exact in the upper half; the median stays
        place = place + 1 if place + 1 < SETS else SETS // 2 + 1
        change = 1 if rest > 0 else -1
        if _MEDIAN <= sizes[place] + change <= _LARGEST:
            sizes[place] += change
    starts = [sum(sizes[:index]) for index in range(SETS)]
    return tuple(tuple((start + k) % GENES for k in range(size)) for start, size in zip(starts, sizes, strict=True))


def full_model(
    tasks: int, *, genes: GeneEncoderConfig = COMPACT, groups: Groups = EVERYWHERE, task_pass: str = "exact"
) -> ModalTune:
    """ModalTune around a Prov-GigaPath of random weights; tasks are called task0, task1, ..."""
    config = ModalTuneConfig(
        tasks=tuple(f"task{index}" for index in range(tasks)),
        gene_indices=gene_indices(),
        adapter=AdapterConfig(groups=groups),
        gene_encoder=genes,
        task_pass=task_pass,
    )
    torch.manual_seed(0)
    return ModalTune(LongNetViT(LongNetConfig()), config)


def full_learner(model: ModalTune) -> Learner:
    """The model with a text head of four candidates a task."""
    generator = torch.Generator().manual_seed(0)
    width = model.config.output_width
    targets = {
        task: candidate_targets(torch.randn(4, width, generator=generator), centre=True) for task in model.config.tasks
    }
    return Learner(model, TextHead(targets), dict.fromkeys(targets, "nominal"))


def full_case(patches: int, tasks: int) -> CaseTensors:
    """One case with random features on a square of grid cells."""
    generator = torch.Generator().manual_seed(1)
    place = torch.arange(patches)
    return CaseTensors(
        patches=torch.randn(patches, 1536, generator=generator),
        cells=torch.stack([place // 200, place % 200], dim=1),
        expression=torch.randn(GENES, generator=generator),
        has_expression=True,
        clinical=torch.zeros(0),
        targets={f"task{index}": (index % 4, True) for index in range(tasks)},
    )

"""The tables of a study: model, training, aggregation, privacy, label queries, probes, evaluation, release."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MOST_COEFFICIENTS = 2048
"""Of one probe: the answer of a site has half the square of it in numbers, here 17 MB."""
Kind = Literal[
    "modaltune", "abmil", "transmil", "gigapath_tuned", "mlp", "s_mlp", "gene_mixer", "mcat", "survpath", "abmil_cat",
    "transmil_cat", "gigapath_cat", "titan_tuned", "titan_cat",
]  # fmt: skip
_IMAGE, _GENES = ("slides",), ("expression",)
NEEDS: dict[str, tuple[str, ...]] = {
    "modaltune": (),
    **dict.fromkeys(("abmil", "transmil", "gigapath_tuned", "gigapath_lp", "titan_tuned", "titan_lp"), _IMAGE),
    **dict.fromkeys(("mlp", "s_mlp", "gene_mixer"), _GENES),
    **dict.fromkeys(("mcat", "survpath", "abmil_cat", "transmil_cat", "gigapath_cat", "titan_cat"), _IMAGE + _GENES),
}
"""Modalities that a model cannot do without: a case that lacks one is neither trained on nor scored."""


class Part(BaseModel):
    """Of a study: no unknown key, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Part):
    """What is trained.

    Attributes:
        kind: ``modaltune``, or a baseline (docs/baselines.md), which reads ``width_scale`` and no other field.
        width_scale: hidden widths of a baseline, times its published ones.
        groups: first and last layer of each group of frozen layers that shares an adapter, up to the encoder's last
            one; those before the first group are computed once a case.
        heads: of the adapters' attention; they divide the width inside an adapter.
        width_ratio: width inside an adapter, as a part of the slide encoder's.
        extra_extractors: further ones behind the last group.
        gamma: how strongly adapters change the frozen layers at the beginning; learnt from there.
        drop_path: rate at which the feed-forward part of an adapter is passed over in training.
        residual: ``reference`` adds residuals twice, as the published code does.
        output_width: of the embedding of a case for a task.
        head: ``text`` shares one text space, ``separate`` has a linear layer a task.
        task_maps: each task has a linear map into the space of the texts.
        centre_texts: the mean of a task's candidate texts is taken off each.
        frozen_dropout: in the frozen layers during training; published: 0.25.
        token_join: of image, task and modality tokens before the head; TITAN published: ``cat``.
        task_pass: a pass for each task, or one with the tokens of all tasks.
        gene_encoder: ``paper`` has a network for each gene set, ``compact`` shares all but the first layer.
        gene_latent: its width.
        gene_depth: its blocks that mix gene sets.
        gene_tokens: what the adapters see of expression.
        gene_dropout: inside it.
        expression_dropout: rate of single genes hidden in training.
        gene_minimum: measured genes that a gene set needs.
    """

    kind: Kind = "modaltune"
    width_scale: Annotated[float, Field(gt=0)] = 1.0
    groups: Annotated[tuple[tuple[Annotated[int, Field(ge=0)], int], ...], Field(min_length=1)] = ((0, 0), (1, 1))
    heads: Annotated[int, Field(gt=0)] = 4
    width_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    extra_extractors: Annotated[int, Field(ge=0)] = 0
    gamma: float = 0.1
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    residual: Literal["single", "reference"] = "single"
    output_width: Annotated[int, Field(gt=0)] = 64
    head: Literal["text", "separate"] = "text"
    task_maps: bool = False
    centre_texts: bool = True
    frozen_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    token_join: Literal["sum", "cat"] = "sum"
    task_pass: Literal["exact", "joint"] = "exact"
    gene_encoder: Literal["compact", "paper"] = "compact"
    gene_latent: Annotated[int, Field(ge=2)] = 64
    gene_depth: Annotated[int, Field(gt=0)] = 1
    gene_tokens: Annotated[int, Field(gt=0)] = 8
    gene_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    expression_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    gene_minimum: Annotated[int, Field(ge=1)] = 3

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        backwards = any(last < first for first, last in self.groups)
        if backwards or any(after[0] != before[1] + 1 for before, after in pairwise(self.groups)):
            found = [list(group) for group in self.groups]
            raise ValueError(f"groups must be ranges of layers, each beginning where the one before ended; got {found}")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """Modalities that the model cannot do without."""
        return NEEDS[self.kind]


class TrainingSpec(Part):
    """Local training and rounds; the learning rate warms up and then follows a cosine over the whole run.

    Attributes:
        objective: ``contrastive`` (cross-entropy over candidate texts) or ``distillation`` (the paper's); ``hazards``
            belongs to baselines.
        temperature: of the softmaxes of ``distillation``, whose loss is multiplied by its square; below 1 it tells
            texts apart that are alike. Published: 1.
        rounds: exchanges of weights.
        local_epochs: passes over a hospital's cases in a round; a part of one, e.g. 0.34, makes rounds shorter.
        keep: the weights that a run ends with: of the ``last`` round, or the ``best`` by the loss over all hospitals'
            validation cases. Weights are validated in the round after, so those of the last one are no candidate.
        hints: weight of a task that the hospital has no labels for, beside one that it has: it holds on to what the
            received model says about it (modaltune/hints.py). 0 = trained on labels only.
        drift: SCAFFOLD-style: part of what separates the hospital's steps from everybody's that the next round corrects
            (modaltune/drift.py); 0 = none, 1 = all of it.
        batch_size: cases in a step.
        learning_rate: its peak.
        weight_decay: of weight matrices.
        warmup: part of the run in which the learning rate rises.
        clip_norm: gradients longer than this are shortened; 0 = never.
        modality_dropout: rate at which one modality of a case that has several is hidden in training.
        wire: how trained weights travel; ``int8`` adds what rounding took from a message to the next one.
        keep_optimiser: AdamW's running averages stay at the site from round to round; they never travel.
        proximal: FedProx: half this times the squared distance from the weights received is added to the loss.
    """

    objective: Literal["contrastive", "distillation", "hazards"] = "contrastive"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    rounds: Annotated[int, Field(gt=0)] = 32
    local_epochs: Annotated[float, Field(gt=0)] = 1.0
    keep: Literal["last", "best"] = "last"
    hints: Annotated[float, Field(ge=0)] = 1.0
    drift: Annotated[float, Field(ge=0, le=1)] = 0.0
    batch_size: Annotated[int, Field(gt=0)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    wire: Literal["fp32", "fp16", "int8"] = "fp16"
    keep_optimiser: bool = True
    proximal: Annotated[float, Field(ge=0)] = 0.0


class AggregationSpec(Part):
    """How the server combines updates.

    Attributes:
        rule: ``mean`` weighs sites by their cases; the others count each site once.
        keywise: a site counts for a parameter with the cases that exercised it; without, with all its cases for all
            parameters, as plain averaging does.
        extrapolate: ``mean``: a longer step where updates cancel in it, as those of sites with different tasks do
            (FedExP, without its settings).
        trim: ``trimmed_mean``: share of the sites left out at each end; at least one there, with three sites or more.
        hostile: ``krum``: number of sites that may be hostile, from 1.
        clip: an update longer than this many times the median length of the last round is shortened to it; 0 = never.
        outlier: ``median``, ``trimmed_mean`` and ``krum``: an update longer than this many times the round's median is
            refused; 0 = never.
        optimiser: of the server, on top of the rule: FedAdam or FedYogi with the four values that follow.
        learning_rate: of the server's optimiser.
        beta1, beta2: decay of its running averages.
        tau: added to the root of the second one.
    """

    rule: Literal["mean", "median", "trimmed_mean", "krum"] = "mean"
    keywise: bool = True
    extrapolate: bool = False
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    hostile: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[float, Field(ge=0)] = 5.0
    outlier: Annotated[float, Field(ge=0)] = 10.0
    optimiser: Literal["none", "adam", "yogi"] = "none"
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Field(gt=0)] = 1e-3


class PrivacySpec(Part):
    """What may leave a site.

    Attributes:
        min_cell: a count below it is not reported; a site with fewer training cases reports no sums.
        min_contributors: a parameter with fewer contributing sites keeps its old value.
        norm_bound: largest Euclidean norm of one parameter tensor in a reply.
    """

    min_cell: Annotated[int, Field(ge=1)] = 5
    min_contributors: Annotated[int, Field(ge=1)] = 1
    norm_bound: Annotated[float, Field(gt=0)] = 1e4


class LabelQuerySpec(Part):
    """Questions after the end: how candidate texts of a task that nobody labelled divide a site's cases. Exploratory.

    Attributes:
        budget: different queries that a site answers under one approval; 0 = none.
        max_candidates: texts in one query.
        by_label: sites may also count by the labels of the study's tasks.
    """

    budget: Annotated[int, Field(ge=0)] = 0
    max_candidates: Annotated[int, Field(ge=2, le=64)] = 8
    by_label: bool = False


class ProbesSpec(Part):
    """Linear probes on the final embeddings, fitted over the sites before the evaluation (docs/probes.md).

    Attributes:
        questions: most questions that a site answers for one task, after the tally of its cases; 0 = no probes.
        largest: coefficients that are asked about, on standardised features, do not exceed it in absolute size.
    """

    questions: Annotated[int, Field(ge=0)] = 0
    largest: Annotated[float, Field(gt=0)] = 10.0


class EvaluationSpec(Part):
    """What sites tell of their test cases beside their own scores (docs/metrics.md, "From counts").

    Attributes:
        counts: sites send counts by class and score, and of pairs of patients, from which the coordinator computes
            metrics of everybody's test cases.
        bins: of predicted probabilities in those counts.
    """

    counts: bool = False
    bins: Annotated[int, Field(ge=4, le=1024)] = 64


class ReleaseSpec(Part):
    """When a metric is enough to release a model on.

    Attributes:
        min_cases: test cases behind a metric.
        min_events: deaths behind a C-index; cases of the rarest class behind a classification metric. Below ten, one
            patient moves the metric more than most differences that anybody reports.
    """

    min_cases: Annotated[int, Field(ge=1)] = 20
    min_events: Annotated[int, Field(ge=1)] = 10

"""A synthetic cohort in the shape of TCGA by hospital: five hospitals, slides, genes, three tasks, no real patient.

Generative model (docs/synthetic.md has the reasons and the measured difficulty). Every patient has eight latent
factors z ~ N(case mix of the hospital, 1):

======================  ====================  ============================================================
factor                  shows in              acts on
======================  ====================  ============================================================
0 differentiation       tumour patches        diagnosis, only together with factor 3 (interaction)
1 growth pattern        tumour patches        diagnosis
2 adhesion              genes                 diagnosis
3 hormone response      genes                 diagnosis, only together with factor 0; survival
4 proliferation         patches and genes     stage, survival
5 immune infiltration   patches and genes     survival; how much of the slide is immune tissue
6 invasion              stroma patches        stage
7 hypoxia               genes                 stage; how much of the slide is necrosis
======================  ====================  ============================================================

The world (loadings, tissue prototypes, gene sets) is fixed; a seed draws hospitals and patients.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.cohort import Bag
from modaltune.data.genesets import write_gmt
from modaltune.errors import ConfigError
from modaltune.seeds import numpy_generator
from simulation.sites import check_overrides, class_and_event, draw_split, write_site

TASKS = ("diagnosis", "stage", "survival")
DIAGNOSES = ("ductal-like carcinoma", "lobular-like carcinoma")
STAGES = ("I", "II", "III", "IV")
HOSPITAL_SHARES = {"H1": 0.32, "H2": 0.22, "H3": 0.18, "H4": 0.15, "H5": 0.13}
DEFAULT_CASES = 800
FEWEST_CASES = 60

LATENTS = 8
PATCH_FEATURES = 32
PATCH_PIXELS = 256
FEWEST_PATCHES, MOST_PATCHES = 16, 32
TWO_SLIDES = 0.15  # share of patients
GENES = 200
GENE_SETS = 24
TISSUES = ("tumour", "stroma", "immune", "necrosis")
FOLLOW_UP_MONTHS = 120.0

_WORLD_SEED = 20
_STAGE_BOUNDS = (-0.75, 0.25, 1.35)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SiteLayout:
    """What one hospital labels and lacks."""

    tasks: tuple[str, ...] = TASKS
    without: tuple[str, ...] = ()


HETEROGENEOUS: Mapping[str, SiteLayout] = {
    "H1": SiteLayout(),
    "H2": SiteLayout(tasks=("diagnosis",)),
    "H3": SiteLayout(tasks=("stage",), without=("slides",)),
    "H4": SiteLayout(tasks=("survival",), without=("expression",)),
    "H5": SiteLayout(tasks=("diagnosis", "survival")),
}
"""Default: hospitals label different tasks and lack different modalities."""

HOMOGENEOUS: Mapping[str, SiteLayout] = {hospital: SiteLayout() for hospital in HOSPITAL_SHARES}
"""Every hospital has every task and every modality."""


@dataclass(frozen=True, kw_only=True)
class SyntheticHospital:
    """Everything drawn for one hospital, before a layout takes something away.

    Attributes:
        cases: index ``case_id``; ``split``, ``diagnosis``, ``stage``, ``time_months``, ``event``, ``age``, ``sex``.
        expression: ``[cases, GENES]`` float32, index ``case_id``.
        bags: case_id -> (slide_id, bag) of one or two slides.
        truth: what an oracle knows: columns ``diagnosis`` (logit of the second class), ``stage`` (higher = later),
            ``survival`` (log hazard, higher = worse); index ``case_id``.
    """

    cases: pd.DataFrame
    expression: pd.DataFrame
    bags: Mapping[str, tuple[tuple[str, Bag], ...]]
    truth: pd.DataFrame


def build_synthetic(
    out: Path,
    *,
    seed: int = 0,
    cases: int = DEFAULT_CASES,
    layout: Mapping[str, SiteLayout] = HETEROGENEOUS,
    tasks: Mapping[str, Collection[str]] | None = None,
    without: Mapping[str, Collection[str]] | None = None,
) -> list[Path]:
    """Write ``OUT/H1`` to ``OUT/H5`` and ``gene_sets.gmt``; the same seed gives the same bytes.

    Args:
        out: folder that receives the site folders.
        seed: draws hospitals, patients and splits; patients do not depend on the layout.
        cases: patients over all hospitals.
        layout: tasks and missing modalities per hospital, ``HETEROGENEOUS`` or ``HOMOGENEOUS``.
        tasks: hospital -> tasks, instead of the layout's.
        without: hospital -> missing modalities, beside the layout's.
    Returns:
        The five site folders.
    Raises:
        ConfigError: too few cases, or an unknown hospital, task or modality.
    """
    tasks, without = tasks or {}, dict(without or {})
    without |= {name: {*held.without, *without.get(name, ())} for name, held in layout.items()}
    check_overrides(tuple(HOSPITAL_SHARES), TASKS, tasks, without)
    hospitals = draw_hospitals(seed, cases)
    write_gmt(out / "gene_sets.gmt", gene_sets())
    folders = []
    for name, drawn in hospitals.items():
        lacks = without[name]
        folder = write_site(
            out / name,
            name=name,
            tasks=[task for task in TASKS if task in tasks.get(name, layout[name].tasks)],
            cases=drawn.cases,
            expression=None if "expression" in lacks else drawn.expression,
            bags={} if "slides" in lacks else drawn.bags,
            encoder="synthetic",
        )
        folders.append(folder)
    return folders


def draw_hospitals(seed: int = 0, cases: int = DEFAULT_CASES) -> dict[str, SyntheticHospital]:
    """Draw all hospitals, each from a generator of its own; split 65/10/25, stratified by diagnosis and event."""
    if cases < FEWEST_CASES:
        raise ConfigError(f"cases must be at least {FEWEST_CASES} over {len(HOSPITAL_SHARES)} hospitals, got {cases}")
    bounds = np.rint(np.cumsum([0.0, *HOSPITAL_SHARES.values()]) * cases).astype(int)
    sizes = np.diff(bounds)
    return {name: _draw_hospital(seed, name, int(size)) for name, size in zip(HOSPITAL_SHARES, sizes, strict=True)}


def gene_sets() -> dict[str, tuple[str, ...]]:
    """The overlapping gene sets of the synthetic world."""
    members = _world().members
    return {
        f"SYN_PATHWAY_{number + 1:02d}": tuple(_gene(int(index)) for index in np.flatnonzero(row))
        for number, row in enumerate(members)
    }


@dataclass(frozen=True, kw_only=True)
class _World:
    """Fixed loadings. K tissues, P gene sets, G genes, W patch features, D latents.

    Attributes:
        members: ``[P, G]`` which genes a set has.
        activity: ``[D, P]`` latents to pathway activity.
        gene_weight: ``[P, G]`` activity to genes.
        gene_base: ``[G]`` mean log expression.
        prototype: ``[K, W]`` tissue before mixing.
        pattern: ``[K, D, W]`` latents to patches of a tissue.
        mixing: ``[W, W]`` from tissue pattern to features.
        tissue_share: ``[D, K]`` latents to log shares of tissue.
    """

    members: NDArray[np.bool_]
    activity: Floats
    gene_weight: Floats
    gene_base: Floats
    prototype: Floats
    pattern: Floats
    mixing: Floats
    tissue_share: Floats


_SHOWN_IN_TISSUE: Mapping[str, tuple[int, ...]] = {"tumour": (0, 1, 4), "stroma": (6,), "immune": (5,), "necrosis": ()}
_SHOWN_IN_GENES = (2, 3, 4, 5, 7)


def _world() -> _World:
    draw = numpy_generator(_WORLD_SEED, "synthetic world")
    members = np.zeros((GENE_SETS, GENES), dtype=bool)
    for row in members:
        row[draw.choice(GENES, size=draw.integers(8, 20), replace=False)] = True
    activity = np.zeros((LATENTS, GENE_SETS))
    for number in range(GENE_SETS):
        leading = _SHOWN_IN_GENES[number % len(_SHOWN_IN_GENES)]
        activity[_SHOWN_IN_GENES, number] = draw.normal(0.0, 0.15, len(_SHOWN_IN_GENES))
        activity[leading, number] = draw.choice([-1.0, 1.0]) * draw.uniform(0.7, 1.2)
    pattern = np.zeros((len(TISSUES), LATENTS, PATCH_FEATURES))
    for number, tissue in enumerate(TISSUES):
        shown = list(_SHOWN_IN_TISSUE[tissue])
        pattern[number, shown] = draw.normal(0.0, 0.45, (len(shown), PATCH_FEATURES))
    tissue_share = np.zeros((LATENTS, len(TISSUES)))
    tissue_share[5, TISSUES.index("immune")] = 0.6
    tissue_share[7, TISSUES.index("necrosis")] = 0.5
    return _World(
        members=members,
        activity=activity,
        gene_weight=members
        * draw.choice([-1.0, 1.0], members.shape, p=[0.2, 0.8])
        * draw.uniform(0.3, 0.8, members.shape),
        gene_base=draw.uniform(4.0, 9.0, GENES),
        prototype=draw.normal(0.0, 1.2, (len(TISSUES), PATCH_FEATURES)),
        pattern=pattern,
        mixing=draw.normal(0.0, 1.0 / np.sqrt(PATCH_FEATURES), (PATCH_FEATURES, PATCH_FEATURES)),
        tissue_share=tissue_share,
    )


def _gene(index: int) -> str:
    return f"SYNG{index + 1:03d}"


def _draw_hospital(seed: int, name: str, size: int) -> SyntheticHospital:
    draw = numpy_generator(seed, "synthetic hospital", name)
    world = _world()
    latents = draw.normal(0.0, 0.4, LATENTS) + draw.normal(size=(size, LATENTS))
    index = pd.Index([f"SYN-{name}-{number + 1:04d}" for number in range(size)], name="case_id")
    age = np.clip(np.round(draw.normal(62.0, 11.0, size), 1), 25.0, 90.0)
    truth = _truth(latents, age, index)
    cases = _labels(truth, draw).assign(age=age, sex=np.where(draw.random(size) < 0.5, "female", "male"))
    cases.insert(0, "split", draw_split(class_and_event(cases), seed, name))
    genes = pd.Index([_gene(number) for number in range(GENES)])
    expression = pd.DataFrame(_expression(world, latents, draw), index=index, columns=genes)
    return SyntheticHospital(cases=cases, expression=expression, bags=_slides(world, latents, index, draw), truth=truth)


def _truth(latents: Floats, age: Floats, index: pd.Index) -> pd.DataFrame:
    """Scores of an oracle: logit of the second diagnosis, stage score, log hazard."""
    z = latents.T
    diagnosis = 1.8 * z[1] + 1.8 * z[2] + 1.1 * z[0] * z[3] - 0.8
    stage = 0.8 * z[4] + 0.7 * z[6] + 0.6 * z[7] + 0.3 * np.maximum(z[4], 0.0) * z[7]
    survival = 0.55 * stage - 0.7 * z[5] - 0.4 * z[3] + 0.25 * z[4] + 0.03 * (age - 62.0)
    return pd.DataFrame({"diagnosis": diagnosis, "stage": stage, "survival": survival}, index=index)


def _labels(truth: pd.DataFrame, draw: np.random.Generator) -> pd.DataFrame:
    """Labels drawn from the oracle's scores; Weibull times, censored by the study's end and at random."""
    size = len(truth)
    second = draw.random(size) < 1.0 / (1.0 + np.exp(-truth["diagnosis"].to_numpy()))
    level = np.searchsorted(_STAGE_BOUNDS, truth["stage"].to_numpy() + draw.normal(0.0, 0.9, size))
    death = 70.0 * (draw.exponential(size=size) / np.exp(truth["survival"].to_numpy())) ** (1.0 / 1.3)
    left = np.minimum(draw.uniform(12.0, FOLLOW_UP_MONTHS, size), draw.exponential(160.0, size))
    months = np.maximum(np.round(np.minimum(death, left), 2), 0.1)
    return pd.DataFrame(
        {
            "diagnosis": np.asarray(DIAGNOSES, dtype=object)[second.astype(int)],
            "stage": np.asarray(STAGES, dtype=object)[level],
            "time_months": months,
            "event": (death <= left).astype(float),
        },
        index=truth.index,
    )


def _expression(world: _World, latents: Floats, draw: np.random.Generator) -> NDArray[np.float32]:
    """Log expression ``[cases, G]``: pathway activities, heavy-tailed noise, then the hospital's shift and scale."""
    size = len(latents)
    activity = np.tanh(latents @ world.activity * 0.7) / 0.7 + draw.normal(0.0, 0.5, (size, GENE_SETS))
    genes = activity @ world.gene_weight + draw.standard_t(3.0, (size, GENES)) * 0.8
    shift, scale = draw.normal(0.0, 0.6, GENES), np.exp(draw.normal(0.0, 0.15, GENES))
    return np.asarray(world.gene_base + shift + scale * genes, dtype=np.float32)


def _slides(
    world: _World, latents: Floats, index: pd.Index, draw: np.random.Generator
) -> dict[str, tuple[tuple[str, Bag], ...]]:
    stain = draw.normal(0.0, 0.5, PATCH_FEATURES), np.exp(draw.normal(0.0, 0.1, PATCH_FEATURES))
    slides = {}
    for case, factors in zip(index, latents, strict=True):
        count = int(draw.integers(FEWEST_PATCHES, MOST_PATCHES + 1))
        features = (_patches(world, factors, count, draw) * stain[1] + stain[0]).astype(np.float32)
        parts = np.array_split(features, 2) if draw.random() < TWO_SLIDES else [features]
        slides[str(case)] = tuple(
            (f"{case}-S{number}", Bag(features=part, coords=_grid(len(part), draw), patch_size_level0=PATCH_PIXELS))
            for number, part in enumerate(parts, start=1)
        )
    return slides


def _patches(world: _World, factors: Floats, count: int, draw: np.random.Generator) -> Floats:
    """Patches of one patient ``[count, W]``: each of one tissue that shows its own factors, mixed nonlinearly."""
    share = np.exp(np.array([0.9, 0.5, 0.0, -1.0]) + factors @ world.tissue_share)
    tissue = np.sort(draw.choice(len(TISSUES), size=count, p=share / share.sum()))
    tissue[0] = TISSUES.index("tumour")
    signal = world.prototype[tissue] + np.einsum("d,kdw->kw", factors, world.pattern)[tissue]
    signal = np.tanh(signal + draw.normal(0.0, 0.35, signal.shape))
    return np.asarray(signal @ world.mixing * 2.0 + draw.normal(0.0, 0.35, signal.shape))


def _grid(count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Top-left corners ``[count, 2]`` (x, y) of different cells in reading order, so that tissues lie together."""
    side = int(np.ceil(np.sqrt(1.5 * count)))
    cells = np.sort(draw.choice(side * side, size=count, replace=False))
    return np.stack([cells % side, cells // side], axis=1).astype(np.int64) * PATCH_PIXELS

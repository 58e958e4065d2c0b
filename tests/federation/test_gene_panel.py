"""A union of gene panels: sites that measure different genes in one model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modaltune.data.batch import collate
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.federation.capability import Capability, gene_panel
from modaltune.federation.statistics import pooled_preprocessing, site_statistics, statistics_shapes
from modaltune.federation.study import Study
from modaltune.models.learner import build_learner
from modaltune.tasks.head import candidate_targets
from tests.conftest import GENES

FEWER = GENES[:7]


@pytest.fixture
def study(tiny_study: Study) -> Study:
    return tiny_study.model_copy(update={"gene_panel": "union"})


@pytest.fixture
def sites(tiny_cohort: Cohort) -> dict[str, Cohort]:
    """Two halves of the tiny cohort; the second measures fewer genes."""
    first, second = (
        replace(tiny_cohort, site=s, cases=tiny_cohort.cases.iloc[r])
        for s, r in (("H1", slice(0, 15)), ("H2", slice(15, 30)))
    )
    assert tiny_cohort.expression is not None
    return {"H1": first, "H2": replace(second, expression=tiny_cohort.expression[FEWER])}


def pooled(sites: dict[str, Cohort], study: Study) -> Preprocessing:
    replies = {name: site_statistics(cohort, study, GENES) for name, cohort in sites.items()}
    assert {name: value.shape for name, value in replies["H2"].items()} == statistics_shapes(study, GENES)
    return pooled_preprocessing(replies, study, GENES)


def capability(site: str, genes: list[str]) -> Capability:
    return Capability(
        site=site,
        tasks=(),
        modalities=("expression",),
        genes=tuple(genes),
        train_cases=9,
        val_cases=0,
        test_cases=0,
        versions={},
    )


def test_the_study_decides_between_shared_and_all_genes(study: Study, tiny_study: Study) -> None:
    found = {"H1": capability("H1", GENES), "H2": capability("H2", FEWER)}
    named = {gene for members in study.gene_sets.values() for gene in members}
    assert gene_panel(found, study) == sorted(named)
    assert gene_panel(found, tiny_study) == sorted(named & set(FEWER))


def test_each_gene_is_scaled_over_the_sites_that_measure_it(sites: dict[str, Cohort], study: Study) -> None:
    scale = pooled(sites, study).expression
    assert scale is not None
    table = sites["H1"].expression
    assert table is not None
    for column, gene in enumerate(GENES):
        holders = [site for site in sites.values() if site.expression is not None and gene in site.expression]
        train = [case for site in holders for case in site.cases.index[site.cases["split"] == "train"]]
        values = table.loc[table.index.isin(train), gene].to_numpy(np.float64)
        assert scale.mean[column] == pytest.approx(values.mean(), rel=1e-6)
        assert scale.deviation[column] == pytest.approx(values.std(), rel=1e-5)


def test_a_gene_that_a_site_does_not_measure_is_average_and_flagged(sites: dict[str, Cohort], study: Study) -> None:
    found = pooled(sites, study)
    for name, site in sites.items():
        measured = torch.tensor([gene in (GENES if name == "H1" else FEWER) for gene in GENES])
        for case in prepare(site, study, found):
            assert case.expression.shape == (2 * len(GENES),)
            if case.has_expression:
                assert torch.equal(case.expression[len(GENES) :].bool(), ~measured)
                assert not case.expression[: len(GENES)][~measured].any()
                assert case.expression[: len(GENES)][measured].all()


def test_a_set_reads_its_genes_and_their_flags(sites: dict[str, Cohort], study: Study) -> None:
    found = pooled(sites, study)
    generator = torch.Generator().manual_seed(0)
    targets = {
        name: candidate_targets(torch.randn(len(space.candidates), 8, generator=generator), centre=True)
        for name, space in found.tasks.items()
    }
    learner = build_learner(study, found, targets).eval()
    sizes = [len(members) for members in found.gene_sets.values()]
    assert learner.modaltune.gene_encoder is not None
    assert learner.modaltune.gene_encoder.first.weight.shape[0] == 2 * sum(sizes)
    case = next(case for case in prepare(sites["H2"], study, found) if case.has_expression)
    unflagged = replace(case, expression=torch.cat([case.expression[: len(GENES)], torch.zeros(len(GENES))]))
    ours, other = (learner.modaltune.embed(collate([one])) for one in (case, unflagged))
    assert not torch.allclose(ours, other, atol=1e-4)

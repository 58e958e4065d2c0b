from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from modaltune.data.batch import CaseTensors, without_modality
from modaltune.encoders.small import small_slide_encoder
from modaltune.evaluation.linear_probe import fit_linear_probe, slide_vectors
from modaltune.federation.study import Study

CANDIDATES = {"diagnosis": ("alpha", "beta", "gamma"), "stage": ("I", "II", "III", "IV"), "survival": ("early", "late")}


def test_a_case_without_slides_is_zero_and_the_vector_is_the_encoders(tiny_cases: list[CaseTensors]) -> None:
    encoder = small_slide_encoder(6, width=16, depth=2)
    with_slides = next(case for case in tiny_cases if case.patch_count)
    blank = without_modality(with_slides, "slides")
    vectors = slide_vectors([with_slides, blank], encoder)
    states = encoder.hidden_states(with_slides.loaded().patches[None], with_slides.loaded().cells[None])
    np.testing.assert_allclose(vectors[0], states[-1][0, 0].detach().numpy(), rtol=1e-5, atol=1e-6)
    assert not vectors[1].any()


def test_the_probe_finds_a_class_that_the_patches_show_and_never_reads_expression(
    tiny_study: Study, tiny_cases: list[CaseTensors]
) -> None:
    cases = [case for case in tiny_cases if case.patch_count and "diagnosis" in case.targets]
    scores = fit_linear_probe(cases, [None] * len(cases), cases, tiny_study, CANDIDATES)
    assert set(scores) == {"diagnosis", "stage"}  # nobody's death is known
    truth = np.array([case.targets["diagnosis"][0] for case in cases])
    assert (scores["diagnosis"].argmax(axis=1) == truth).mean() > 0.8
    np.testing.assert_allclose(scores["diagnosis"].sum(axis=1), 1)
    other = [replace(case, expression=torch.randn_like(case.expression)) for case in cases]
    again = fit_linear_probe(other, [None] * len(cases), other, tiny_study, CANDIDATES)
    np.testing.assert_array_equal(again["diagnosis"], scores["diagnosis"])


def test_cases_without_slides_do_not_enter_the_fit(tiny_study: Study, tiny_cases: list[CaseTensors]) -> None:
    some = [case for case in tiny_cases if case.patch_count]
    died: list[tuple[float, bool] | None] = [(float(1 + row), row % 2 == 0) for row in range(len(some))]
    blank = [without_modality(case, "slides") for case in some]
    alone = fit_linear_probe(some, died, some, tiny_study, CANDIDATES)
    both = fit_linear_probe([*some, *blank], [*died, *died[::-1]], some, tiny_study, CANDIDATES)
    assert set(alone) == set(both) == {"diagnosis", "stage", "survival"}
    for task, scores in alone.items():
        np.testing.assert_allclose(both[task], scores)


def test_a_probe_without_any_slide_is_absent(tiny_study: Study, tiny_cases: list[CaseTensors]) -> None:
    blank = [without_modality(case, "slides") for case in tiny_cases]
    assert fit_linear_probe(blank, [None] * len(blank), blank, tiny_study, CANDIDATES) == {}

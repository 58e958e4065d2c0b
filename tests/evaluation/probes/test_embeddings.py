from __future__ import annotations

import numpy as np

from modaltune.data.batch import CaseTensors, without_modality
from modaltune.encoders.small import small_slide_encoder
from modaltune.evaluation.probes.embeddings import slide_vectors


def test_a_case_without_slides_is_zero_and_the_vector_is_the_encoders(tiny_cases: list[CaseTensors]) -> None:
    encoder = small_slide_encoder(6, width=16, depth=2)
    with_slides = next(case for case in tiny_cases if case.patch_count)
    blank = without_modality(with_slides, "slides")
    vectors = slide_vectors([with_slides, blank], encoder)
    found = with_slides.loaded()
    published = encoder.norm(encoder(found.patches[None], found.cells[None]))[0, 0]
    np.testing.assert_allclose(vectors[0], published.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert not vectors[1].any()
    assert slide_vectors([], encoder).shape == (0, 16)

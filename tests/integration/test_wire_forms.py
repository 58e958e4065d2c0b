"""Half precision and eight bits on the wire, through real messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from modaltune.federation.study import Study
from modaltune.federation.wire import SCALES
from modaltune.models.modaltune import trainable_state
from server.rounds import Federation
from tests.chaos.tampers import Arrays
from tests.integration.grids import LocalGrid, Passed, RecordingGrid
from tests.integration.helpers import Finished

pytestmark = pytest.mark.integration
SHARE = {"fp16": 0.5, "int8": 0.25 * (1 + 4 / 512)}


def federate(study: Study, form: str, hospitals: dict[str, Path], folder: Path) -> Finished:
    changed = study.model_copy(update={"training": study.training.model_copy(update={"wire": form})})
    passed: list[Passed] = []
    grid = RecordingGrid(LocalGrid(hospitals), passed)
    return Finished(result=Federation(grid, changed, folder).run(), folder=folder, passed=passed)


def weights(finished: Finished) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trainable_state(finished.result.learner).values()])


def payload(message: Passed) -> int:
    return sum(array.nbytes for array in Arrays(message.content).values())


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_a_smaller_message_gives_nearly_the_same_model(
    form: str, federation: Finished, study: Study, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    small = federate(study, form, hospitals, tmp_path)
    full, found = weights(federation), weights(small)
    assert not torch.equal(found, full)
    assert float((found - full).norm() / full.norm()) < 0.02
    for kind, down in (("train", True), ("train", False), ("evaluate", True)):
        ours, whole = (next(m for m in run.passed if m.kind == kind and m.down is down) for run in (small, federation))
        assert payload(ours) == pytest.approx(SHARE[form] * payload(whole), rel=0.1)
    record = Arrays(next(m for m in small.passed if m.kind == "train" and not m.down).content)
    assert set(record) - {SCALES} == set(trainable_state(small.result.learner))
    types = {str(array.dtype) for name, array in record.items() if name != SCALES}
    assert types == {"float16" if form == "fp16" else "int8"}


def test_the_same_seed_gives_the_same_weights_with_eight_bits(
    study: Study, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    first, second = (federate(study, "int8", hospitals, tmp_path / name) for name in ("first", "second"))
    assert first.result.weights_hash == second.result.weights_hash
    kept = [path for folder in hospitals.values() for path in (folder / ".state").rglob("*.safetensors")]
    assert kept, "what rounding took stays at the sites"
    assert np.isfinite(weights(first).numpy()).all()

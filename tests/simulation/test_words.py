from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch.nn.functional as F

from modaltune.data.tcga import DIAGNOSES, read_tcga
from modaltune.encoders.text import text_encoder
from modaltune.errors import ConfigError
from modaltune.tasks.head import candidate_targets
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary
from simulation.tcga import build_tcga
from simulation.words import in_own_words, own_words

WORDED = sorted((configs_folder() / "labels" / "words").glob("*.toml"))


@pytest.mark.parametrize("path", WORDED, ids=lambda path: path.stem)
def test_wordings_name_the_same_diagnoses_in_other_words(path: Path) -> None:
    first, *others = load_vocabulary(path)
    assert first.name == "diagnosis"
    assert first.values == DIAGNOSES[path.stem.upper()][: len(first.values)]
    assert len(others) == 4  # with the first, one for each hospital
    (usual,) = load_vocabulary(path.parents[1] / path.name, ["diagnosis"])
    assert first == usual
    for other in others:
        assert len(other.values) == len(first.values)
        assert not {label.text for label in other.labels} & {label.text for label in first.labels}


@pytest.mark.parametrize("path", WORDED, ids=lambda path: path.stem)
def test_each_wording_means_the_right_diagnosis_to_the_text_encoder(path: Path) -> None:
    """Nearest among the first wording's texts, once what the candidates of a task have in common is taken away."""
    tasks, encoder = load_vocabulary(path), text_encoder()
    targets = [
        candidate_targets(encoder.embed([task.template.format(text=label.text) for label in task.labels]), centre=True)
        for task in tasks
    ]
    for task, other in zip(tasks[1:], targets[1:], strict=True):
        near = F.normalize(other, dim=-1) @ targets[0].T
        assert near.argmax(dim=1).tolist() == list(range(len(other))), task.name


def test_hospitals_label_the_diagnosis_in_their_own_words_and_are_tested_in_all(tcga_dir: Path, tmp_path: Path) -> None:
    tables = in_own_words(read_tcga(tcga_dir, "RCC"))
    held = own_words(tables.hospitals, tables.tasks)
    folders = build_tcga(tcga_dir, "RCC", tmp_path / "sites", tasks=held, words=True)
    truth = build_tcga(tcga_dir, "RCC", tmp_path / "truth", words=True)
    assert tables.tasks == tuple(task.name for task in load_vocabulary(WORDED[-1]))
    for folder, whole, wording in zip(folders, truth, tables.tasks, strict=True):
        cases = pd.read_parquet(folder / "cases.parquet")
        known = pd.read_parquet(whole / "cases.parquet")
        assert {*cases.columns} & {*tables.tasks} == {wording}
        pd.testing.assert_series_equal(cases[wording], known[wording])
        pd.testing.assert_series_equal(cases["split"], known["split"])
        pairs = known[["diagnosis", wording]].drop_duplicates().dropna()
        assert len(pairs) == known["diagnosis"].nunique()
        assert known["diagnosis"].isna().tolist() == known[wording].isna().tolist()


def test_a_cohort_that_nobody_worded_is_named(tcga_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"gbmlgg\.toml: no such label vocabulary; known in words/: brca, nsclc, rcc"):
        in_own_words(read_tcga(tcga_dir, "GBMLGG"))


def test_more_hospitals_than_wordings_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 hospitals, but 2 wordings; choose fewer with --hospitals"):
        own_words(["H1", "H2", "H3"], ["diagnosis", "subtype"])

"""Further modalities: a site's table of report texts or numbers becomes one vector a case."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from modaltune.data.cohort import Cohort
from modaltune.data.scale import Scale
from modaltune.encoders.text import verified_text_encoder
from modaltune.errors import ModalityError
from modaltune.federation.inputs import ModalitySpec
from modaltune.federation.study import Study


def modality_numbers(cohort: Cohort, modality: ModalitySpec, cases: pd.Index) -> NDArray[np.float64]:
    """The study's columns of the given cases that have the modality: ``[cases, width]``.

    Raises:
        ModalityError: the table lacks a column, or holds text.
    """
    table = cohort.modalities.get(modality.name)
    if table is None:
        return np.zeros((0, modality.width))
    absent = [name for name in modality.columns if name not in table.columns]
    if absent:
        raise ModalityError(
            f"site {cohort.site}: modality {modality.name}: {len(absent)} of {modality.width} columns of the study are"
            f" missing, first {absent[0]!r}; add them, or leave the table out of site.toml"
        )
    return table.loc[table.index.intersection(cases), list(modality.columns)].to_numpy(np.float64)


def modality_vectors(cohort: Cohort, study: Study, scales: Mapping[str, Scale]) -> dict[str, dict[str, Tensor]]:
    """Modality -> case_id -> vector ``[width]`` float32: standardised numbers, or the text's embedding.

    Embeddings have a mean square of one, like standardised numbers. A modality whose scale no site could give is left
    out.
    """
    out = {}
    for modality in study.modalities:
        table = cohort.modalities.get(modality.name)
        if table is None or (modality.columns and modality.name not in scales):
            continue
        if modality.columns:
            numbers = modality_numbers(cohort, modality, table.index).astype(np.float32)
            values = torch.from_numpy(scales[modality.name].apply(numbers))
        else:
            values = _embedded(cohort, modality, table)
        out[modality.name] = dict(zip(map(str, table.index), values, strict=True))
    return out


def _embedded(cohort: Cohort, modality: ModalitySpec, table: pd.DataFrame) -> Tensor:
    if "text" not in table.columns:
        raise ModalityError(
            f"site {cohort.site}: modality {modality.name}: the study reads a column 'text' and the table has"
            f" {table.shape[1]} numeric ones; add the texts, or leave the table out of site.toml"
        )
    if modality.text is None:
        raise ValueError(f"modality {modality.name} names no text encoder")
    rows: Tensor = verified_text_encoder(modality.text).encode(
        list(table["text"])
    )  # patients' texts enter no shared cache
    if rows.shape[1] != modality.width:
        raise ModalityError(
            f"modality {modality.name}: text encoder {modality.text.encoder!r} gives {rows.shape[1]} numbers, the study"
            f" says width {modality.width}; correct the study"
        )
    return rows * math.sqrt(modality.width)

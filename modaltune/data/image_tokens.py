"""Slide-level image measurements as a short bag: measurements of one kind make one token.

Two tables are known. ``img_hif``: human-interpretable features whose names carry a tissue compartment and a cell type.
``img_nuclei``: nuclear morphology, mean and standard deviation over nuclei. The token of a measurement, and its place
in the token, depend on its name only, so every data folder of the same layout gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.errors import DataError

IMAGE_TABLES = ("img_hif", "img_nuclei")
TOKEN_PIXELS = 256
"""Edge of a token's cell on the pseudo-grid, in level-0 pixels."""

HIF_WIDTH = 43
"""Token width of ``img_hif``; its largest group has 41 measurements."""
COMPARTMENTS = ("EPITHELIAL", "ESI_0080", "STROMA", "TUMOR")
CELL_TYPES = ("CANCER", "FIBROBLAST", "LYMPHOCYTE", "MACROPHAGE", "PLASMA")
OTHER = ("NECROSIS", "TISSUE")

NUCLEI_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "size": ("area", "major_axis_length", "minor_axis_length", "perimeter"),
    "shape": ("circularity", "eccentricity", "solidity"),
    **{f"intensity {channel}": (f"int_{channel}_mean", f"int_{channel}_sd") for channel in ("gray", "s", "a", "b")},
}

Groups = dict[str, list[str]]

_CELL_SIZES = {"CANCER": 41, "FIBROBLAST": 17, "LYMPHOCYTE": 19, "MACROPHAGE": 17, "PLASMA": 17}
_REGION_SIZES = {"EPITHELIAL": 33, "ESI_0080": 33, "STROMA": 33, "TUMOR": 32}
_OTHER_SIZE = 32


def image_tokens(table: pd.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, ...]]:
    """Group a table's measurements into tokens.

    ``img_hif`` is heavy-tailed and becomes sign(x) log(1 + abs(x)); ``img_nuclei`` is not, and stays as it is.

    Args:
        table: ``[cases, measurements]``, columns named as in the TCGA layout; other columns are ignored.
    Returns:
        features ``[cases, T, W]`` zero-padded to the common width W, coords ``[T, 2]`` (x, y) on a pseudo-grid of
        ``TOKEN_PIXELS`` (one row a compartment or family, one column a cell type or statistic), and T token names.
    Raises:
        DataError: a measurement is missing, unknown, text or not finite.
    """
    names = [str(column) for column in table.columns]
    nuclei = any(name.startswith("int_") for name in names)
    groups = _nuclei_groups(names) if nuclei else _hif_groups(names)
    where = "img_nuclei" if nuclei else "img_hif"
    _require_numbers(table, groups, where)
    width = max(map(len, NUCLEI_FAMILIES.values())) if nuclei else HIF_WIDTH
    features = np.zeros((len(table), len(groups), width), dtype=np.float32)
    for token, columns in enumerate(groups.values()):
        features[:, token, : len(columns)] = table[columns].to_numpy(dtype=np.float32)
    if not np.isfinite(features).all():
        broken = int((~np.isfinite(features)).any(axis=(1, 2)).sum())
        raise DataError(f"{where}: {broken} rows hold NaN or infinite measurements; remove those rows")
    if not nuclei:
        features = np.sign(features) * np.log1p(np.abs(features))
    per_row = 2 if nuclei else len(CELL_TYPES) + 1
    cells = np.arange(len(groups), dtype=np.int64)
    coords = np.stack([cells % per_row, cells // per_row], axis=1) * TOKEN_PIXELS
    return features, coords, tuple(groups)


def _require_numbers(table: pd.DataFrame, groups: Groups, where: str) -> None:
    names = [name for columns in groups.values() for name in columns]
    wordy = [name for name in names if not pd.api.types.is_numeric_dtype(table[name].dtype)]
    if wordy:
        raise DataError(
            f"{where}: {len(wordy)} measurements are not numeric (first: column {wordy[0]!r}); "
            "expected a number in every row, remove text such as 'NA'"
        )


def _hif_groups(names: Sequence[str]) -> Groups:
    """Token -> measurements: compartment x cell type (or region), and one token for necrosis and whole tissue."""
    sizes = {
        f"{compartment} {kind}": size
        for compartment in COMPARTMENTS
        for kind, size in [("region", _REGION_SIZES[compartment]), *_CELL_SIZES.items()]
    } | {"other": _OTHER_SIZE}
    groups: Groups = {token: [] for token in sizes}
    for name in sorted(names):
        if any(word in name for word in (*COMPARTMENTS, *OTHER)):
            groups[_hif_token(name)].append(name)
    for token, columns in groups.items():
        if len(columns) != sizes[token]:
            raise DataError(
                f"img_hif: token {token!r} has {len(columns)} measurements; expected {sizes[token]}, 607 in all. "
                "Columns are missing or renamed; docs/data.md says how they are named"
            )
    return groups


def _hif_token(name: str) -> str:
    compartment = _first_named(name, COMPARTMENTS)
    if compartment is None:
        return "other"
    return f"{compartment} {_first_named(name, CELL_TYPES) or 'region'}"


def _first_named(name: str, words: Sequence[str]) -> str | None:
    named = [word for word in words if word in name]
    return min(named, key=name.index, default=None)


def _nuclei_groups(names: Sequence[str]) -> Groups:
    """Token -> measurements: family x (mean, standard deviation over nuclei)."""
    groups = {
        f"{family} {statistic}": [f"{column}_{statistic}" for column in columns]
        for family, columns in NUCLEI_FAMILIES.items()
        for statistic in ("mean", "sd")
    }
    missing = [column for columns in groups.values() for column in columns if column not in names]
    if missing:
        raise DataError(
            f"img_nuclei: {len(missing)} of 30 measurements are missing (first: {missing[0]!r}); "
            "docs/data.md says how they are named"
        )
    return groups

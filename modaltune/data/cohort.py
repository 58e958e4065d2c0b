"""What a site's files become: one validated :class:`Cohort` of cases, expression and bags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.features import Features
from modaltune.storage import digest_text

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Bag:
    """Patch features of one slide, in the order of the file.

    Attributes:
        features: ``[N, W]`` float32, finite, N >= 1; an array, or the rows of a file that are read when asked for.
        coords: ``[N, 2]`` int64, level-0 pixels (x, y) of each patch's top-left corner.
        patch_size_level0: edge of one patch in level-0 pixels.
    """

    features: Features
    coords: NDArray[np.int64]
    patch_size_level0: int


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """All usable cases of one site.

    Attributes:
        site: name of the site, as in ``site.toml``.
        tasks: names of the tasks that this site labels.
        cases: one row a case, index ``case_id``; column ``split`` (train, val, test) and whichever of ``diagnosis``,
            ``stage``, ``grade`` (text in the study vocabulary, None when unlabelled), ``time_months`` (> 0),
            ``event`` (1 = death observed), ``age``, ``sex`` the site has. Labels are already mapped to the vocabulary.
        expression: ``[cases, genes]`` float32, index ``case_id``, columns gene symbols; only cases that have it.
            None when the site has no genomics.
        bags: case_id -> the bags of its slides, ordered by slide id; a case without slides has no entry.
        modalities: further ones by name: index ``case_id``, column ``text`` or float32 columns; only cases with it.
    """

    site: str
    tasks: tuple[str, ...]
    cases: pd.DataFrame
    expression: pd.DataFrame | None
    bags: Mapping[str, tuple[Bag, ...]]
    modalities: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def table_digest(self) -> str:
        """Names the cases with their splits, labels and clinical values."""
        return digest_text(pd.util.hash_pandas_object(self.cases).to_numpy().tobytes().hex())

    @property
    def patch_width(self) -> int | None:
        """Number of features per patch, None when the site has no slides."""
        for bags in self.bags.values():
            return int(bags[0].features.shape[1])
        return None

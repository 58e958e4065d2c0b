"""How a site's patches were made, as its feature files say, held against what a study or another site says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from modaltune.data.bags import BagFiles
from modaltune.data.cohort import Cohort
from modaltune.data.encoder_names import encoder_model
from modaltune.errors import FeatureFileError
from modaltune.federation.inputs import SlideSpec
from modaltune.federation.study import Study

_ONE_RESOLUTION = 0.02
"""Relative difference of two statements of one resolution."""
_MODEL = re.compile(r"[a-z0-9_.+]{1,40}")
TOLD: dict[str, Callable[[Any], bool]] = {
    "patch-encoder": lambda name: isinstance(name, str) and _MODEL.fullmatch(name) is not None,
    "patch-mpp": lambda mpp: isinstance(mpp, float) and 0.05 <= mpp <= 10,
    "patch-size": lambda size: type(size) is int and 0 < size <= 2**16,
}
"""Under which names a site tells what its patches are, and what they can be."""


@dataclass(frozen=True, kw_only=True)
class SlideSettings:
    """What feature files say; None where none of them says it.

    Attributes:
        patch_encoder: its name.
        mpp: micrometres per pixel of the patches.
        patch_size: edge of a patch in those pixels.
    """

    patch_encoder: str | None = None
    mpp: float | None = None
    patch_size: int | None = None

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Self:
        """What a site tells; everything may be absent.

        Raises:
            ValueError: a value that no patches have.
        """
        for name, fits in TOLD.items():
            if record.get(name) is not None and not fits(record[name]):
                raise ValueError(f"its {name} cannot be right")
        encoder, mpp, size = map(record.get, TOLD)
        return cls(patch_encoder=encoder, mpp=mpp, patch_size=size)

    def told(self) -> dict[str, str | float | int]:
        """What may be told of it, as :meth:`parse` reads it."""
        model = None if self.patch_encoder is None else encoder_model(self.patch_encoder)
        mpp = None if self.mpp is None else round(float(self.mpp), 3)
        values = zip(TOLD.items(), (model, mpp, self.patch_size), strict=True)
        return {name: value for (name, fits), value in values if value is not None and fits(value)}


def stated(cohort: Cohort) -> SlideSettings:
    """What the feature files of a site say; files of one site agree."""
    sources = cohort.bags.sources.values() if isinstance(cohort.bags, BagFiles) else ()
    every = [source for case in sources for source in case]
    return SlideSettings(
        patch_encoder=next((source.encoder for source in every if source.encoder is not None), None),
        mpp=next((source.mpp for source in every if source.mpp is not None), None),
        patch_size=next((source.patch_size for source in every if source.patch_size is not None), None),
    )


def difference(found: SlideSettings, asked: SlideSettings | SlideSpec, whose: str = "the study") -> str | None:
    """What patches are and somebody else does not want or have, in words; what either does not say agrees."""
    encoders = [name for name in (found.patch_encoder, asked.patch_encoder) if name]
    if len({encoder_model(name) for name in encoders}) > 1:
        return f"patch encoder {found.patch_encoder}, {whose} {asked.patch_encoder}"
    if asked.mpp and found.mpp and not math.isclose(asked.mpp, found.mpp, rel_tol=_ONE_RESOLUTION):
        return f"{found.mpp:g} micrometres per pixel, {whose} {asked.mpp:g}"
    if asked.patch_size and found.patch_size and asked.patch_size != found.patch_size:
        return f"patches of {found.patch_size} pixels, {whose} {asked.patch_size}"
    return None


def check_slides(cohort: Cohort, study: Study) -> None:
    """Refuse bags that were made otherwise than a study says.

    Raises:
        FeatureFileError: another width, patch encoder, resolution or patch edge.
    """
    width = cohort.patch_width
    if width is None:
        return
    if width != study.slides.in_width:
        raise FeatureFileError(
            f"site {cohort.site}: bags have {width} features per patch but study {study.name} needs"
            f" {study.slides.in_width}; extract them with the encoder that the study names"
        )
    if differs := difference(stated(cohort), study.slides):
        raise FeatureFileError(
            f"site {cohort.site}: the bags have {differs}; extract them as study {study.name} says under [slides]"
        )

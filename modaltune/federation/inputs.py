"""What a model reads: slides, clinical columns, texts and further modalities, as a study describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from modaltune.federation.settings import Digest, Name, Part


class ClinicalColumn(Part):
    """A clinical input; labels in disguise (see docs/data.md) are refused.

    Attributes:
        name: of its column in the cases table.
        values: categories; none = a number.
    """

    name: Literal["age", "sex"]
    values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "age" and self.values:
            raise ValueError("clinical input age: it is a number, leave out values")
        if self.name == "sex" and sorted(self.values) != ["female", "male"]:
            raise ValueError('clinical input sex: values must be "female" and "male"')
        return self


class SlideSpec(Part):
    """The frozen slide encoder and the bags it reads.

    Attributes:
        encoder: ``small`` is built in, random and says nothing about slides; ``vit`` is a plain vision transformer.
        in_width: features per patch.
        patch_encoder: name of the patch encoder that made them, as feature files state it; not given = not compared.
        mpp: micrometres per pixel of the patches, likewise.
        patch_size: edge of a patch in those pixels, likewise.
        width, depth: of the frozen encoder.
        sha256: digest of the frozen weights, checked at every site.
        standardise: ``none``, ``feature`` (pooled mean and deviation of each feature) or ``position`` (the same per
            row of the bag, for bags whose rows mean the same thing in every case).
        rows: patches per bag when ``standardise = "position"``.
        max_patches: of a case; one with more is subsampled, by a seed.
        resample: training draws another subset of a larger bag in each epoch; evaluation always sees the same one.
        cache_embedding: embed patches once and keep them on the site's disk in half precision.
    """

    encoder: Literal["small", "longnet", "titan", "vit"] = "small"
    in_width: Annotated[int, Field(gt=0)]
    patch_encoder: Annotated[str, Field(pattern=r"^[\w.+/:@-]{1,64}$")] | None = None
    mpp: Annotated[float, Field(ge=0.05, le=10)] | None = None
    patch_size: Annotated[int, Field(gt=0)] | None = None
    width: Annotated[int, Field(gt=0, multiple_of=4)] = 64
    depth: Annotated[int, Field(gt=0)] = 2
    sha256: Digest
    standardise: Literal["none", "feature", "position"] = "none"
    rows: Annotated[int, Field(ge=0)] = 0
    max_patches: Annotated[int, Field(gt=0)] = 4096
    resample: bool = False
    cache_embedding: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.standardise == "position") != (self.rows > 0):
            raise ValueError('rows is needed with standardise = "position", and only there')
        if self.resample and self.cache_embedding:
            raise ValueError("resample draws other patches in each epoch: it cannot go with cache_embedding")
        return self

    @model_serializer(mode="wrap")
    def _what_it_says(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what it does not say, so that studies from before there was a field keep their digest."""
        return {name: value for name, value in serialise(self).items() if value is not None}


class TextSpec(Part):
    """The frozen text encoder that embeds labels.

    Attributes:
        encoder: its name.
        sha256: digest of its weights, checked at every site.
    """

    encoder: str = "minilm"
    sha256: Digest


class ModalitySpec(Part):
    """A further modality: one vector a case, from a table that a site names under ``[paths.modalities]``.

    Attributes:
        name: by which a site names its table.
        columns: numeric columns, standardised over the federation; none = a column ``text`` (reports), embedded at the
            site by a frozen text encoder.
        text: that encoder.
        width: of the vector: the text encoder's, or the number of columns.
        tokens: what the adapters see of it.
    """

    name: Name
    columns: tuple[str, ...] = ()
    text: TextSpec | None = None
    width: Annotated[int, Field(gt=0)]
    tokens: Annotated[int, Field(gt=0)] = 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name in ("slides", "expression", "clinical"):
            raise ValueError(f"modality {self.name} has a part of its own in the study; choose another name")
        if bool(self.columns) == (self.text is not None):
            raise ValueError(f"modality {self.name}: give either columns or a text encoder")
        if self.columns and (len(self.columns) != self.width or len(set(self.columns)) != self.width):
            raise ValueError(f"modality {self.name}: width {self.width} but {len(set(self.columns))} different columns")
        return self

"""A task of a study, and the metrics of its kind."""

from __future__ import annotations

from itertools import groupby
from typing import Literal, Self

from pydantic import model_validator

from modaltune.data.follow_up import is_survival
from modaltune.federation.settings import Name, Part

HORIZONS = (12, 36, 60)  # months at which survival is scored
AT_HORIZONS: dict[str, dict[str, int]] = {
    "nominal": {},
    "ordinal": {},
    "survival": {f"{name}_{months}m": months for name in ("auc", "brier") for months in HORIZONS},
}
"""Metrics at a time -> that time in months."""
HEADLINES = {
    "nominal": ("auc", "balanced_accuracy"),
    "ordinal": ("auc", "balanced_accuracy"),
    "survival": ("c_index",),
}
FURTHER = {
    "nominal": ("macro_f1", "brier", "ece"),
    "ordinal": ("macro_f1", "brier", "ece"),
    "survival": ("c_index_ipcw", *AT_HORIZONS["survival"]),
}
METRICS = {kind: HEADLINES[kind] + FURTHER[kind] for kind in HEADLINES}
REPORTED = {kind: tuple(name for name in names if name not in AT_HORIZONS[kind]) for kind, names in METRICS.items()}
"""What leaves a hospital: at a horizon, a score can rest on a single death."""


class Label(Part):
    """One value of a task and the text that stands for it.

    Attributes:
        value: as sites write it, or map their codes to it.
        text: what is embedded, in the prompt of the task.
        scale: ordinal tasks: labels are ordered within a scale, scales are not (the stages of several cancers).
    """

    value: str
    text: str
    scale: str = ""


def _takes_text(template: str) -> bool:
    """Whether a template is filled with a text, and with nothing else."""
    marks = template.replace("{text}", "")
    return marks != template and not {"{", "}"} & set(marks)


class TaskSpec(Part):
    """A task: its kind, its prompt and its labels.

    Attributes:
        name: of the task, and of its column in the cases table.
        kind: ``survival`` reads ``time_months`` and ``event``; a task ``NAME_survival`` reads ``NAME_time_months`` and
            ``NAME_event``.
        template: prompt with ``{text}``.
        labels: nominal and ordinal tasks; ordinal ones from low to high.
        positive: ordinal tasks are scored as these levels against the others.
        bins: survival tasks: one text per time bin, earliest death first.
    """

    name: Name
    kind: Literal["nominal", "ordinal", "survival"]
    template: str
    labels: tuple[Label, ...] = ()
    positive: tuple[str, ...] = ()
    bins: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "survival") != is_survival(self.name):
            raise ValueError(
                f"task {self.name}: tasks of kind survival, and only these, are called survival or NAME_survival, such"
                " as progression_free_survival"
            )
        if not _takes_text(self.template):
            raise ValueError(f"task {self.name}: template must contain {{text}} once, and no other braces")
        if self.kind == "survival" and len(set(self.bins)) < max(2, len(self.bins)):
            raise ValueError(f"task {self.name}: a survival task needs at least two bins, each once")
        if len({label.value.casefold() for label in self.labels}) < len(self.labels):
            raise ValueError(f"task {self.name}: labels must differ by more than upper and lower case")
        if self.kind != "survival" and len(self.labels) < 2:
            raise ValueError(f"task {self.name}: needs at least two labels")
        if len({label.text for label in self.labels}) < len(self.labels):
            raise ValueError(f"task {self.name}: two labels have the same text; nothing could tell them apart")
        if self.kind == "survival" and self.labels:
            raise ValueError(f"task {self.name}: a survival task has bins, not labels; leave labels out")
        if self.kind == "ordinal" and not set() < set(self.positive) < {label.value for label in self.labels}:
            raise ValueError(f"task {self.name}: positive must name some of its labels, and not all")
        scales = [label.scale for label in self.labels]
        if len(list(groupby(scales))) > len(set(scales)):
            raise ValueError(f"task {self.name}: the labels of a scale must stand one after the other")
        if any(scales) and self.kind != "ordinal":
            raise ValueError(f"task {self.name}: only the labels of an ordinal task have a scale")
        return self

    @property
    def values(self) -> tuple[str, ...]:
        """Label values in the order of the vocabulary."""
        return tuple(label.value for label in self.labels)

    @property
    def probe_rows(self) -> int:
        """Rows of coefficients of its probe: one of survival and of two classes."""
        return 1 if len(self.labels) <= 2 else len(self.labels)

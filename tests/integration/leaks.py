"""Looks for patient data in the bytes of Flower messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.data.slide_settings import TOLD
from modaltune.federation.evaluation_counts import counts_manifest
from modaltune.federation.manifest import TRAIN_METRICS, evaluation_metrics, statistics_manifest
from modaltune.federation.study import Study
from modaltune.models.learner import Learner
from modaltune.models.modaltune import trainable_state
from tests.chaos.tampers import Arrays
from tests.integration.grids import Passed

RUN = 3  # this many neighbouring values in a row are somebody's measurements, not chance
STRIDE = 4  # a run is looked for at every 4th place of a row, so 6 neighbours that leak are always found
WORDS = {np.dtype("<f4"): np.dtype("<u4"), np.dtype("<f8"): np.dtype("<u8")}
ASKED = {"study", "genes", "preprocessing", "round"}
CAPABILITY = {"site", "tasks", "genes", "modalities", "cases-train", "cases-val", "cases-test", *TOLD}
REPLIES = {
    "query.capability": {"capability"},
    "query.statistics": {"statistics"},
    "train": {"arrays", "examples", "metrics"},
    "evaluate": {"metrics"},
    "query.label": {"label-query"},
}


class Measurements:
    """Values of patients, to be recognised in any bytes, at any offset, in single or double precision."""

    def __init__(self, rows: Iterable[NDArray[np.floating]]) -> None:
        windows = np.concatenate([_windows(np.asarray(row, dtype=np.float64)) for row in rows])
        windows = windows[np.array([len(set(window)) == RUN for window in windows])]
        self.words = {kind: windows.astype(kind).view(word) for kind, word in WORDS.items()}
        self.first = {kind: np.unique(words[:, 0]) for kind, words in self.words.items()}
        self.known = {kind: set(map(tuple, words.tolist())) for kind, words in self.words.items()}

    def found_in(self, data: bytes) -> bool:
        return any(self._found(data, kind, offset) for kind in WORDS for offset in range(kind.itemsize))

    def _found(self, data: bytes, kind: np.dtype, offset: int) -> bool:
        count = (len(data) - offset) // kind.itemsize
        if count < RUN:
            return False
        words = np.frombuffer(data, WORDS[kind], count, offset)
        starts = np.flatnonzero(np.isin(words[: 1 - RUN], self.first[kind]))
        return any(tuple(words[start : start + RUN].tolist()) in self.known[kind] for start in starts)


def _windows(row: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.lib.stride_tricks.sliding_window_view(row, RUN)[::STRIDE] if len(row) >= RUN else np.zeros((0, RUN))


def measurements(cohorts: Mapping[str, Cohort], study: Study, preprocessing: Preprocessing) -> Measurements:
    """Raw tables and features, the same in the order of the gene panel, and the model input made of them."""

    def rows() -> Iterator[NDArray[np.floating]]:
        for cohort in cohorts.values():
            for column in ("time_months", "age"):
                if column in cohort.cases:
                    yield cohort.cases[column].dropna().to_numpy(np.float64)
            if cohort.expression is not None:
                yield from cohort.expression.to_numpy()
                yield from cohort.expression[list(preprocessing.genes)].to_numpy()
            for bags in cohort.bags.values():
                yield from (patch for bag in bags for patch in np.asarray(bag.features))
            for case in prepare(cohort, study, preprocessing):
                yield case.expression.numpy()
                yield from case.patches.numpy()

    return Measurements(rows())


def identifiers(folder: Path) -> set[str]:
    """Every identifier in a site's tables."""
    names = set(pd.read_parquet(folder / "cases.parquet", columns=["case_id"])["case_id"])
    if (folder / "slides.csv").is_file():
        slides = pd.read_csv(folder / "slides.csv")
        names |= {*slides["slide_id"], *slides["case_id"], *slides["file"]}
    return {str(name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a message of one study may contain."""

    identifiers: set[str]
    measurements: Measurements
    training: Mapping[str, tuple[int, ...]]
    statistics: Mapping[str, tuple[int, ...]]
    metrics: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, tuple[int, ...]]

    def problems(self, message: Passed) -> list[str]:
        """Everything in a message that may not be there; empty when it keeps the rules."""
        names = [name for name in self.identifiers if name.encode() in message.data]
        out = [f"{len(names)} identifiers"] if names else []
        out += ["measurements of a patient"] if self.measurements.found_in(message.data) else []
        return out + (self._request(message) if message.down else self._reply(message))

    def _request(self, message: Passed) -> list[str]:
        content = message.content
        with_weights = message.kind in ("train", "evaluate")
        out = _same("records", set(content), {"study", "arrays"} if with_weights else {"study"})
        out += _inside("settings", set(content.config_records["study"]), ASKED)
        return out + (self._arrays(message, "arrays", self.training, "float32") if with_weights else [])

    def _reply(self, message: Passed) -> list[str]:
        content = message.content
        counted = {"counts"} if self.counts and message.kind == "evaluate" else set()
        out = _same("records", set(content), REPLIES[message.kind] | counted)
        if counted:
            out += self._arrays(message, "counts", self.counts, "float64")
        if message.kind == "query.capability":
            said = set(content.config_records["capability"])
            return out + _inside("fields", said, CAPABILITY | {name for name in said if name.startswith("version-")})
        if message.kind == "query.statistics":
            return out + self._arrays(message, "statistics", self.statistics, "float64")
        if message.kind == "query.label":
            said = set(Arrays(content, "label-query"))
            return out + _same("arrays", said, {"cases", "counts", "probability"})
        out += _inside("metrics", set(content.metric_records["metrics"]), set(self.metrics[message.kind]))
        if message.kind == "train":
            out += self._arrays(message, "arrays", self.training, "float32")
            out += _same("example counts", set(content.metric_records["examples"]), set(self.training))
        return out

    def _arrays(self, message: Passed, name: str, shapes: Mapping[str, tuple[int, ...]], kind: str) -> list[str]:
        record = dict(Arrays(message.content, name))
        out = _same("arrays", set(record), set(shapes))
        wrong = [k for k, v in record.items() if k in shapes and (tuple(v.shape), str(v.dtype)) != (shapes[k], kind)]
        return out + [f"{k} has another shape or type" for k in wrong]


def _same(what: str, found: set[str], expected: set[str]) -> list[str]:
    return [f"{what}: {sorted(found ^ expected)}"] if found != expected else []


def _inside(what: str, found: set[str], allowed: set[str]) -> list[str]:
    return [f"{what}: {sorted(found - allowed)}"] if not found <= allowed else []


def rules_of(
    learner: Learner, preprocessing: Preprocessing, study: Study, cohorts: Mapping[str, Cohort], folders: Iterable[Path]
) -> Rules:
    state = trainable_state(learner)
    return Rules(
        identifiers=set().union(*map(identifiers, folders)),
        measurements=measurements(cohorts, study, preprocessing),
        training={name: tuple(value.shape) for name, value in state.items()},
        statistics=statistics_manifest(study, preprocessing.genes).shapes,
        metrics={"train": TRAIN_METRICS, "evaluate": evaluation_metrics(study)},
        counts=counts_manifest(study, preprocessing).shapes if study.evaluation.counts else {},
    )

"""What a run folder says, read once and made ready for tables and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from modaltune.errors import FederationError
from modaltune.evaluation.predictions import COSINE
from modaltune.federation.task import FURTHER, HORIZONS
from modaltune.storage import read_json_lines

CORE_METHODS = ("local", "federated", "pooled", "linear_local", "linear")
MIN_GAP = 0.01  # a smaller local-to-pooled gap is noise, and a share of noise says nothing

_METHOD_ORDER = (*CORE_METHODS, "separate_heads", "per_task", "per_task_same_cost", "texts_alone")
_METRIC_ORDER = (
    *(
        "auc",
        "c_index",
        "auc_binned",
        "c_index_stratified",
        "balanced_accuracy",
        "auc_probe",
        "c_index_probe",
        "balanced_accuracy_probe",
        "auc_cosine",
        "c_index_cosine",
        "balanced_accuracy_cosine",
    ),
    *dict.fromkeys(name for names in FURTHER.values() for name in names),
)
_METRIC_TITLES = {
    "auc": "AUC",
    "c_index": "C-index",
    "auc_binned": "AUC, from counts",
    "c_index_stratified": "C-index, within hospitals",
    "balanced_accuracy": "Balanced accuracy",
    "auc_probe": "AUC, probe",
    "c_index_probe": "C-index, probe",
    "balanced_accuracy_probe": "Balanced accuracy, probe",
    "auc_cosine": "AUC, without temperature",
    "c_index_cosine": "C-index, without temperature",
    "balanced_accuracy_cosine": "Balanced accuracy, without temperature",
    "macro_f1": "Macro-F1",
    "brier": "Brier score",
    "ece": "Calibration error",
    "c_index_ipcw": "C-index, IPCW",
} | {
    f"{name}_{months}m": f"{title}, {months} months"
    for name, title in (("auc", "AUC"), ("brier", "Brier score"))
    for months in HORIZONS
}
_METHOD_TITLES = {
    "local": "Local",
    "federated": "Federated",
    "pooled": "Pooled",
    "linear_local": "Linear, local",
    "linear": "Linear, pooled",
    "separate_heads": "Separate heads",
    "per_task": "One federation per task",
    "per_task_same_cost": "One federation per task, at the same cost",
    "texts_alone": "Texts alone, never trained",
}
_LOWER_IS_BETTER = ("loss", "brier", "error", "nll", "ece")
LEFT_OUT = "without_"
SUMMED = "counts.json"
"""Test cases by step of probability, summed over hospitals; where these sent counts."""


class Key(NamedTuple):
    """What one score is about."""

    task: str
    metric: str
    hospital: str
    method: str


@dataclass(frozen=True, kw_only=True)
class SeedScore:
    """One row of ``metrics.json``: a value with its 95 % interval; None where undefined.

    ``error``: the most by which a value from counts can differ from that of the counted cases in one table.
    """

    seed: int | None
    value: float | None
    low: float | None
    high: float | None
    cases: int | None
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """One method on one task, metric and hospital: means over the seeds in which it is defined.

    Attributes:
        value: mean value; None when undefined with every seed.
        low: mean lower end of the 95 % bootstrap intervals over patients.
        high: mean upper end of them.
        seeds: the rows behind it, ordered by seed.
        error: largest error of a value from counts; None where it is none from counts.
    """

    value: float | None
    low: float | None
    high: float | None
    seeds: tuple[SeedScore, ...]
    error: float | None = None

    @property
    def cases(self) -> str:
        """Number of test cases, as a range when it differs between seeds."""
        counts = sorted({row.cases for row in self.seeds if row.cases is not None})
        return "n/a" if not counts else " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of the study.

    Attributes:
        name: for example ``diagnosis``.
        kind: ``nominal``, ``ordinal`` or ``survival``.
        candidates: label values that the columns of ``probabilities`` stand for, in that order.
        positive: ordinal tasks: the levels that are scored against the others.
        edges: survival tasks: inner edges of the time bins, in months.
    """

    name: str
    kind: str
    candidates: tuple[str, ...]
    positive: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Everything the report needs from a run folder; absent files are empty or None.

    ``counts``: of ``counts.json``, see :attr:`server.evaluation.Evaluation.summed`. ``queries``: round logs of label
    queries that were asked since.
    """

    folder: Path
    study: Mapping[str, Any]
    summary: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    scores: Mapping[Key, Score]
    tasks: tuple[Task, ...]
    hospitals: tuple[str, ...]
    predictions: pd.DataFrame | None
    embeddings: pd.DataFrame | None
    comparisons: tuple[Mapping[str, Any], ...] = ()
    suppressed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    queries: tuple[Mapping[str, Any], ...] = ()

    @property
    def together(self) -> dict[Key, Score]:
        """Scores on the test cases of all hospitals together."""
        return {key: score for key, score in self.scores.items() if key.hospital == "all"}

    @property
    def status(self) -> str:
        """OK, DEGRADED or FAILED; a run without any result and without a word about it has failed."""
        said = str(self.summary.get("status", "")).upper()
        if said:
            return said
        if not self.scores:
            return "FAILED"
        return "DEGRADED" if any(str(row.get("status")) == "DEGRADED" for row in self.rounds) else "OK"

    @property
    def simulated(self) -> bool:
        """Whether the hospitals were parts of one data set: nothing else can pool or predict single cases."""
        return self.predictions is not None or "pooled" in self.methods or bool(self.summary.get("simulated"))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all methods that were scored, in the order in which they are shown."""
        return order_methods({key.method for key in self.scores})

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds that were scored."""
        rows = (row for score in self.scores.values() for row in score.seeds)
        return tuple(sorted({row.seed for row in rows if row.seed is not None}))

    @property
    def training(self) -> tuple[Mapping[str, Any], ...]:
        """Training rounds of the first seed, in order."""
        return training_rounds(self.rounds)

    def of_first_seed(self, table: pd.DataFrame) -> pd.DataFrame:
        """Rows of the seed that was given first, whose study, preprocessing and model are those of the run."""
        return table[table["seed"] == self.study["seed"]] if "seed" in table else table


def load_run(run: Path) -> RunData:
    """Read a run folder. Files that a real federation or a failed run does not have may be absent.

    Federations without one of the hospitals are no methods: :mod:`server.cross_site` reads them.

    Raises:
        FederationError: the folder holds no run, or one of its files is damaged.
    """
    if not any((run / name).is_file() for name in ("study.json", "summary.json", "rounds.jsonl")):
        raise FederationError(
            f"{run}: not a run folder, found none of study.json, summary.json and rounds.jsonl. "
            "Give the folder that a run or a simulation has written."
        )
    study, summary = _read_json(run / "study.json", {}), _read_json(run / "summary.json", {})
    preprocessing = _read_json(run / "preprocessing.json", {})
    rows = _read_json(run / "metrics.json", [])
    scores = collect(row for row in rows if not leaves_out(str(row["method"])))
    return RunData(
        folder=run,
        study=study,
        summary=summary,
        rounds=tuple(read_json_lines(run / "rounds.jsonl")),
        scores=scores,
        tasks=_tasks(study, preprocessing, scores),
        hospitals=_hospitals(study, summary, scores),
        predictions=read_table(run / "predictions.parquet"),
        embeddings=read_table(run / "embeddings.parquet"),
        comparisons=tuple(_read_json(run / "comparisons.json", [])),
        suppressed=preprocessing.get("suppressed") or {},
        counts=_read_json(run / SUMMED, {}),
        queries=tuple(row for log in sorted(run.glob("queries/*/rounds.jsonl")) for row in read_json_lines(log)),
    )


def training_rounds(rounds: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Training rounds of the first seed, in order, each once: attempts whose updates were thrown away do not count.

    Args:
        rounds: lines of ``rounds.jsonl``; of a round that was repeated after a restart, the last is taken.
    """
    rows = [row for row in rounds if row.get("phase") == "train" and row.get("status") != "REPEATED"]
    first = rows[0].get("seed") if rows else None
    latest = {int(row.get("round", 0)): row for row in rows if row.get("seed") == first}
    return tuple(latest[number] for number in sorted(latest))


def collect(rows: Iterable[Mapping[str, Any]]) -> dict[Key, Score]:
    """Group metrics rows by task, metric, hospital and method, and average over seeds."""
    grouped: dict[Key, list[SeedScore]] = {}
    for row in rows:
        key = Key(str(row["task"]), str(row["metric"]), str(row["hospital"]), str(row["method"]))
        grouped.setdefault(key, []).append(
            SeedScore(
                seed=row.get("seed"),
                value=number(row.get("value")),
                low=number(row.get("low")),
                high=number(row.get("high")),
                cases=row.get("n"),
                error=number(row.get("error")),
            )
        )
    return {key: _average(seeds) for key, seeds in grouped.items()}


def by_method(scores: Mapping[Key, Score], task: str, metric: str, hospital: str = "all") -> dict[str, Score]:
    """Scores of one task and metric at one hospital (``all``: everybody's test cases), by method."""
    return {key.method: score for key, score in scores.items() if key[:3] == (task, metric, hospital)}


def task_metrics(scores: Mapping[Key, Score], tasks: Sequence[str] = ()) -> list[tuple[str, str]]:
    """All (task, metric) pairs: tasks in the order given, then others; the main metric of a task first."""
    order = list(dict.fromkeys([*tasks, *(key.task for key in scores)]))
    pairs = {(key.task, key.metric) for key in scores}
    return sorted(pairs, key=lambda pair: (order.index(pair[0]), _position(pair[1], _METRIC_ORDER), pair[1]))


def headline(metric: str) -> bool:
    """Whether a metric belongs into the tables that everybody reads."""
    return not metric.endswith(COSINE) and not any(metric in names for names in FURTHER.values())


def main_metrics(scores: Mapping[Key, Score], tasks: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The (task, metric) pairs that figures show: one metric a task."""
    first: dict[str, str] = {}
    for task, metric in task_metrics(scores, tasks):
        first.setdefault(task, metric)
    return list(first.items())


def gain(metric: str, first: Score | None, second: Score | None) -> float | None:
    """How much better the second score is than the first; positive = better, whatever the metric's direction."""
    if first is None or second is None or first.value is None or second.value is None:
        return None
    sign = -1.0 if any(word in metric for word in _LOWER_IS_BETTER) else 1.0
    return sign * (second.value - first.value)


def gap_closed(metric: str, methods: Mapping[str, Score]) -> float | None:
    """Share of the way from local to pooled that federated has gone (1 = as good as pooling); None without a gap."""
    local = methods.get("local")
    gap = gain(metric, local, methods.get("pooled"))
    federated = gain(metric, local, methods.get("federated"))
    if gap is None or federated is None or gap < MIN_GAP:
        return None
    return federated / gap


def leaves_out(method: str) -> bool:
    """Whether a method is the federation without one hospital (``without_H3``)."""
    return method.startswith(LEFT_OUT)


def order_methods(names: Iterable[str]) -> tuple[str, ...]:
    """Method names in the order in which they are shown everywhere."""
    return tuple(sorted(names, key=lambda name: (_position(name, _METHOD_ORDER), name)))


def method_title(name: str) -> str:
    """What a method is called in tables and figures."""
    return _METHOD_TITLES.get(name, name)


def metric_title(name: str) -> str:
    """What a metric is called in tables and figures."""
    return _METRIC_TITLES.get(name, name.replace("_", " "))


def number(value: object) -> float | None:
    """A finite float, or None for null, NaN and anything that is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _average(rows: Sequence[SeedScore]) -> Score:
    defined = [row for row in rows if row.value is not None]
    return Score(
        value=_mean([row.value for row in defined]),
        low=_mean([row.low for row in defined]),
        high=_mean([row.high for row in defined]),
        seeds=tuple(sorted(rows, key=lambda row: -1 if row.seed is None else row.seed)),
        error=max((row.error for row in defined if row.error is not None), default=None),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _position(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _tasks(study: Mapping[str, Any], preprocessing: Mapping[str, Any], scores: Mapping[Key, Score]) -> tuple[Task, ...]:
    known = {str(task["name"]): task for task in study.get("tasks", [])}
    prepared = preprocessing.get("tasks", {})
    return tuple(
        Task(
            name=name,
            kind=str(known.get(name, {}).get("kind", "")),
            candidates=tuple(map(str, prepared.get(name, {}).get("candidates") or ())),
            positive=tuple(map(str, known.get(name, {}).get("positive") or ())),
            edges=tuple(map(float, prepared.get(name, {}).get("bin_edges") or ())),
        )
        for name in dict.fromkeys([*known, *(key.task for key in scores)])
    )


def _hospitals(study: Mapping[str, Any], summary: Mapping[str, Any], scores: Mapping[Key, Score]) -> tuple[str, ...]:
    roster = [str(site["name"] if isinstance(site, Mapping) else site) for site in study.get("roster", [])]
    scored = sorted({key.hospital for key in scores} - {"all"})
    return tuple(dict.fromkeys([*roster, *map(str, summary.get("sites", {})), *scored]))


def _read_json(path: Path, absent: Any) -> Any:
    if not path.is_file():
        return absent
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FederationError(f"{path.name}: not valid JSON, the file is damaged. Restore it or run again.") from error


def read_table(path: Path) -> pd.DataFrame | None:
    """A table of a run folder; None where there is none."""
    try:
        return pd.read_parquet(path) if path.is_file() else None
    except (OSError, ValueError) as error:  # what pyarrow raises
        raise FederationError(
            f"{path}: not a complete parquet file; restore it from a copy, or run the federation again"
        ) from error

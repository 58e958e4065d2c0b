"""What may travel: the manifest of a study, enforced at the site before sending and at the server on arrival."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modaltune.errors import ReplyRefused
from modaltune.evaluation.probes.embeddings import SUFFIX
from modaltune.federation.statistics import statistics_shapes
from modaltune.federation.study import Study
from modaltune.federation.task import HEADLINES, REPORTED, TaskSpec
from modaltune.models.learner import Learner
from modaltune.models.modaltune import trainable_state

TRAIN_METRICS = ("loss", "steps", "train-cases", "val-loss-sum", "val-cases")
LARGEST_LOSS, MOST_STEPS, MOST_CASES = 1e6, 1e6, 10_000_000
COUNTED = ("n", "events")
METRIC_PARTS = ("value", "low", "high", *COUNTED)
_WHOLE = ("steps", "train-cases", "val-cases")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Names, shapes and type of the arrays of one kind of message, and the largest norm of one of them."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: str = "float32"
    dtypes: Mapping[str, str] = field(default_factory=dict)  # of single arrays, where they differ
    norm_bound: float = math.inf

    @classmethod
    def of_training(cls, learner: Learner, study: Study) -> Manifest:
        """The trained tensors of a study's model: decided by the module, nothing else travels."""
        shapes = {name: tuple(value.shape) for name, value in trainable_state(learner).items()}
        return cls(shapes=shapes, norm_bound=study.privacy.norm_bound)

    @property
    def megabytes(self) -> float:
        """Payload of one message in 10^6 bytes."""
        return (
            sum(math.prod(shape) * np.dtype(self.type_of(name)).itemsize for name, shape in self.shapes.items()) / 1e6
        )

    def type_of(self, name: str) -> str:
        """Type of one array."""
        return self.dtypes.get(name, self.dtype)

    def check(self, site: str, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Refuse arrays that differ from the manifest in name, shape, type, finiteness or norm."""
        if unexpected := sorted(set(arrays) - set(self.shapes)):
            raise ReplyRefused(site, f"{len(unexpected)} array(s) outside the manifest")
        if missing := sorted(set(self.shapes) - set(arrays)):
            raise ReplyRefused(site, f"{len(missing)} array(s) missing, first {missing[0]}")
        for name, shape in self.shapes.items():
            value = arrays[name]
            if tuple(value.shape) != shape or str(value.dtype) != self.type_of(name):
                expected = f"{self.type_of(name)}{shape}"
                raise ReplyRefused(site, f"{name} is {value.dtype}{tuple(value.shape)}, not {expected}")
            if not np.isfinite(value).all():
                raise ReplyRefused(site, f"{name} is not finite")
            if self.norm_bound < math.inf and np.linalg.norm(value.astype(np.float64)) > self.norm_bound:
                raise ReplyRefused(site, f"{name} has a norm above {self.norm_bound:g}")


def statistics_manifest(study: Study, genes: Sequence[str]) -> Manifest:
    """Sums of the preprocessing round."""
    return Manifest(shapes=statistics_shapes(study, genes), dtype="float64")


def reported_metrics(study: Study, task: TaskSpec) -> tuple[str, ...]:
    """Metrics of a task that leave a hospital; those of its probe have names of their own."""
    probed = HEADLINES[task.kind] if study.probes.questions else ()
    return (*REPORTED[task.kind], *(f"{metric}{SUFFIX}" for metric in probed))


def evaluation_metrics(study: Study) -> tuple[str, ...]:
    """Names that an evaluation reply may carry: task, metric, part.

    ``events`` are deaths, or cases of the rarest class. A site leaves out a task with a group too small to be told.
    """
    return tuple(
        f"{task.name}.{metric}.{part}"
        for task in study.tasks
        for metric in reported_metrics(study, task)
        for part in METRIC_PARTS
    )


def check_examples(
    site: str, examples: Mapping[str, object], keys: Mapping[str, object], largest: int
) -> dict[str, int]:
    """Example counts of a reply: one per parameter, whole, between 0 and the site's training cases."""
    if set(examples) != set(keys):
        raise ReplyRefused(site, f"example counts for {len(examples)} keys, expected {len(keys)}")
    for name, count in examples.items():
        if not isinstance(count, int) or not 0 <= count <= largest:
            raise ReplyRefused(site, f"example count of {name} is outside 0..{largest}")
    return {name: int(str(count)) for name, count in examples.items()}


def check_metrics(site: str, metrics: Mapping[str, object], allowed: tuple[str, ...]) -> dict[str, float]:
    """Metrics of a reply: only allowed names, finite numbers."""
    if unexpected := set(metrics) - set(allowed):
        raise ReplyRefused(site, f"{len(unexpected)} metric(s) outside the manifest")
    for name, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ReplyRefused(site, f"metric {name} is not a finite number")
    return {name: float(str(value)) for name, value in metrics.items()}


def check_training(site: str, metrics: Mapping[str, object], largest: int, validated: int) -> dict[str, float]:
    """Metrics of a training reply: all of them, none negative, counts whole and no larger than the site's cases.

    Args:
        largest, validated: training and validation cases that the site may have.
    """
    found = check_metrics(site, metrics, TRAIN_METRICS)
    if missing := set(TRAIN_METRICS) - set(found):
        raise ReplyRefused(site, f"metric {min(missing)} is missing")
    bounds = {"loss": LARGEST_LOSS, "steps": MOST_STEPS, "train-cases": largest, "val-loss-sum": math.inf}
    bounds["val-cases"] = validated
    for name, value in found.items():
        if not 0 <= value <= bounds.get(name, MOST_CASES) or (name in _WHOLE and value != int(value)):
            raise ReplyRefused(site, f"metric {name} is out of range")
    if found["val-loss-sum"] > LARGEST_LOSS * found["val-cases"]:
        raise ReplyRefused(site, "metric val-loss-sum is out of range")
    return found


def check_evaluation(site: str, metrics: Mapping[str, object], study: Study, largest: int) -> dict[str, float]:
    """Metrics of an evaluation reply: scores between 0 and 1, counts whole and no larger than the site's test cases."""
    found = check_metrics(site, metrics, evaluation_metrics(study))
    for name, value in found.items():
        counted = name.rpartition(".")[2] in COUNTED
        if not 0 <= value <= (largest if counted else 1) or (counted and value != int(value)):
            raise ReplyRefused(site, f"metric {name} is out of range")
    return found

"""Probes as they travel: what may be asked of a site, which arrays answer, and what is wrong with an answer.

F features of an embedding, G groups (candidates of a task; survivors and deaths), R rows of D coefficients in all.

================= ==================== =====================================================================
message           arrays (float64)
================= ==================== =====================================================================
tally, up         ``T.counts [G]``     training cases of task T by group, mean of their embeddings and squared
                  ``T.mean [F]``       distances from it; all zero when a group is too small to be counted
                  ``T.squares [F]``
question, down    ``coefficients``     ``[R, F]`` (logistic: ``[R, F + 1]``) on features that are standardised by
                  ``mean, deviation``  ``[F]``; ``classes``: the groups with cases somewhere
sums, up          ``loss [1]``         with ``gradient [D]`` and the upper triangle ``hessian [D (D + 1) / 2]``
                                       where derivatives are wanted; zeros with a loss of -1 where
                                       coefficients are too large for numbers, of -2 where held back
evaluation, down  ``T.coefficients``   and so on: the fitted probe of task T
================= ==================== =====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError, ProbeError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.probes.cox import RiskSets
from modaltune.evaluation.probes.fit import ProbeQuestion, site_sums
from modaltune.evaluation.probes.logistic import log_probabilities, logits
from modaltune.evaluation.probes.sums import SiteCases, Sums, Tally, site_tally
from modaltune.federation.manifest import Manifest
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.federation.wire import Packed
from modaltune.storage import canonical_json, digest_state, digest_text
from modaltune.suppression import tells_small_counts

TOO_FAR, HELD_BACK = -1.0, -2.0
WIDEST = 10.0
"""Root mean square of a standardised feature at a site; pooled over all sites it is 1."""
DOMINANT = 0.9
"""Most that fewer cases than a site may count carry of the weight in its sums."""
SHARPEST = 30.0
"""Root mean square over cases of the largest difference between the logits of two classes.

Beyond it nearly all chances are 0 or 1; an optimum with a ridge stays far below, however easy its classes are to tell.
"""
_PARTS = ("coefficients", "mean", "deviation", "classes")
_TALLY = ("counts", "mean", "squares")
_ROUNDING, _CONSTANT = 1e-9, 1e-12
_LARGEST_FEATURE, _LARGEST_SUM = 1e6, 1e15  # beyond, sums over sites may leave the range of numbers
Arrays = dict[str, Floats]


@dataclass(frozen=True, kw_only=True)
class ProbeQuery:
    """A question about the probe of a task.

    Attributes:
        model: names weights and preprocessing, see :func:`model_name`.
    """

    task: str
    model: str
    question: ProbeQuestion

    @property
    def digest(self) -> str:
        """Names the question; the same one may be asked again."""
        bits = {name: value.tobytes().hex() for name, value in question_arrays(self.question).items()}
        return digest_text(canonical_json([self.task, self.model, self.question.derivatives, bits]))


def model_name(preprocessing: Preprocessing, packed: Packed) -> str:
    """Digest of the weights as they travel, and of what goes with them."""
    weights = digest_state({name: torch.from_numpy(np.array(value)) for name, value in packed.items()})
    return digest_text(canonical_json([preprocessing.digest, weights]))


def groups_of(task: TaskSpec, preprocessing: Preprocessing) -> int:
    """G of a task."""
    return 2 if task.kind == "survival" else len(preprocessing.tasks[task.name].candidates)


def question_arrays(question: ProbeQuestion) -> Arrays:
    """A question, or a fitted probe, as it travels."""
    found = {"coefficients": question.coefficients, "mean": question.mean, "deviation": question.deviation}
    return {**found, "classes": np.asarray(question.classes, np.float64)}


def question_of(
    arrays: Packed, task: TaskSpec, study: Study, groups: int, *, derivatives: bool = True
) -> ProbeQuestion:
    """The question in its arrays, held to the study.

    Args:
        groups: classes are below it.
    Raises:
        ConfigError: the study does not allow it.
        KeyError, ValueError: it is no question.
    """
    if set(arrays) != set(_PARTS) or any(str(value.dtype) != "float64" for value in arrays.values()):
        raise ValueError
    coefficients, mean, deviation, classes = (np.ascontiguousarray(arrays[name], np.float64) for name in _PARTS)
    survival, width = task.kind == "survival", study.model.output_width
    known = classes.ndim == 1 and np.isin(classes, np.arange(groups)).all() and (np.diff(classes) > 0).all()
    if not known or len(classes) < (1 if survival else 2) or (survival and classes[-1] != 1):
        raise ConfigError(f"a question about {task.name} names classes that it has not")
    rows = 1 if survival or len(classes) == 2 else len(classes)
    if coefficients.shape != (rows, width + (not survival)) or not mean.shape == deviation.shape == (width,):
        raise ConfigError(f"a question about {task.name} has arrays of other shapes")
    if not all(np.isfinite(value).all() for value in (coefficients, mean, deviation)):
        raise ConfigError(f"a question about {task.name} is not finite")
    if not ((deviation == 0) | (deviation > _CONSTANT * (1 + np.abs(mean)))).all():
        raise ConfigError(f"a question about {task.name} divides by a deviation that is none")
    if np.abs(coefficients).max(initial=0) > study.probes.largest:
        raise ConfigError(f"a question about {task.name} has a coefficient beyond probes.largest")
    chosen = tuple(int(value) for value in classes)
    return ProbeQuestion(
        coefficients=coefficients, mean=mean, deviation=deviation, classes=chosen, derivatives=derivatives
    )


def probe_arrays(probes: Mapping[str, ProbeQuestion]) -> Arrays:
    """Fitted probes by task as they travel."""
    return {f"{task}.{name}": value for task, q in probes.items() for name, value in question_arrays(q).items()}


def probes_of(arrays: Packed, study: Study, preprocessing: Preprocessing) -> dict[str, ProbeQuestion]:
    """The inverse of :func:`probe_arrays`, held to the study; raises as :func:`question_of`."""
    found = {}
    for task in study.tasks:
        mine = {name: value for name in _PARTS if (value := arrays.get(f"{task.name}.{name}")) is not None}
        if mine:
            found[task.name] = question_of(mine, task, study, groups_of(task, preprocessing))
    if len(arrays) != len(_PARTS) * len(found):
        raise ValueError
    return found


def probes_digest(probes: Mapping[str, ProbeQuestion]) -> str:
    """Names fitted probes."""
    return digest_text(canonical_json({name: value.tobytes().hex() for name, value in probe_arrays(probes).items()}))


def question_bytes(study: Study) -> int:
    """Bytes that the numbers of no probe question, nor of all probes together, exceed."""
    if not study.probes.questions:
        return 0
    width, groups = study.model.output_width + 1, [max(len(task.labels), 2) for task in study.tasks]
    return sum(8 * (width * (count + 2) + count) for count in groups)


def tally_manifest(study: Study, preprocessing: Preprocessing) -> Manifest:
    """Arrays of a tally."""
    shapes: dict[str, tuple[int, ...]] = {}
    for task in study.tasks:
        sizes = (groups_of(task, preprocessing), study.model.output_width, study.model.output_width)
        shapes |= {f"{task.name}.{name}": (size,) for name, size in zip(_TALLY, sizes, strict=True)}
    return Manifest(shapes=shapes, dtype="float64")


def tally_arrays(tallies: Mapping[str, Tally]) -> Arrays:
    """Tallies by task as they travel."""
    return {f"{task}.{name}": getattr(tally, name) for task, tally in tallies.items() for name in _TALLY}


def tally_of(arrays: Mapping[str, Floats], task: str) -> Tally:
    """The tally of one task."""
    return Tally(**{name: arrays[f"{task}.{name}"] for name in _TALLY})


def problem_with_tally(task: str, tally: Tally, minimum: int, most_cases: int) -> str:
    """What is wrong with a tally that otherwise fits its manifest; empty = it may leave, and counts."""
    counts = tally.counts
    if tells_small_counts(counts, minimum):
        return f"it counts fewer than {minimum} cases of {task}"
    if tally.cases > most_cases:
        return f"it counts more cases of {task} than were approved"
    if (tally.squares < 0).any() or (not tally.cases and (tally.mean.any() or tally.squares.any())):
        return f"its tally of {task} is one of no cases"
    largest = max(np.abs(tally.mean).max(), np.sqrt(tally.squares / max(tally.cases, 1)).max())
    return f"its tally of {task} is out of range" if largest > _LARGEST_FEATURE else ""


def site_answer(cases: SiteCases, question: ProbeQuestion, minimum: int) -> Arrays:
    """Sums over a site's training cases of a task; held back where too few of them carry weight.

    Raises:
        ProbeError: the site contributes nothing to this probe, or the question fits no probe of its cases.
    """
    if not told_tally(cases, 0, minimum).cases:
        raise ProbeError("a group of cases is too small to be counted, so no sums leave")
    if not set(cases.group.tolist()) <= set(question.classes):
        raise ProbeError("the question leaves out a class that cases here have")
    features = question.standardised(cases.features)
    if (np.sqrt((features**2).mean(axis=0)) > WIDEST).any():
        raise ProbeError("the question standardises features as no pooled cases would")
    manifest = sums_manifest(question)
    sums = site_sums(cases, question)
    if not np.isfinite(sums.loss):
        return _silence(manifest, TOO_FAR)
    if _dominated(cases, question, minimum):
        return _silence(manifest, HELD_BACK)
    packed = sums.packed()
    return {name: packed[name] for name in manifest.shapes}


def _silence(manifest: Manifest, why: float) -> Arrays:
    return {name: np.full(shape, why if name == "loss" else 0.0) for name, shape in manifest.shapes.items()}


def told_tally(cases: SiteCases, groups: int, minimum: int) -> Tally:
    """Tally of one site; that of no cases also where its mean and spread would be about a few of them."""
    tally = site_tally(cases, groups, minimum)
    if tally.cases and _few_carry(((cases.features - tally.mean) ** 2).sum(axis=1), minimum):
        nothing = np.zeros(cases.features.shape[1])
        return Tally(counts=np.zeros(groups), mean=nothing, squares=nothing)
    return tally


def _dominated(cases: SiteCases, question: ProbeQuestion, minimum: int) -> bool:
    """Whether fewer cases than may be counted carry nearly all weight, or nobody any: the sums would be about those.

    With coefficients so large that nearly every chance is 0 or 1, the gradient counts the cases on one side of a plane.
    """
    if minimum <= 1:
        return False
    features = question.standardised(cases.features)
    if cases.months is None and _sharpness(features, question.coefficients) > SHARPEST:
        return True
    length, found = (features**2).mean(axis=1), _weights(cases, features, question)
    return any(_few_carry(weights, minimum) or _few_carry(weights * length, minimum) for weights in found)


def _few_carry(weights: Floats, minimum: int) -> bool:
    """Whether ``minimum - 1`` cases carry nearly all of something."""
    return bool(np.sort(weights)[len(weights) - minimum + 1 :].sum() > DOMINANT * weights.sum() > 0)


def _sharpness(features: Floats, coefficients: Floats) -> float:
    """Root mean square over cases of the largest difference between the logits of two classes."""
    found = logits(features, coefficients)
    return float(np.sqrt(((found.max(axis=1) - found.min(axis=1)) ** 2).mean()))


def _weights(cases: SiteCases, features: Floats, question: ProbeQuestion) -> tuple[Floats, ...]:
    """``[n]`` of each case in the derivatives: expected deaths; or distance from its label, and spread of classes.

    Args:
        features: of the cases, as the question standardises them.
    """
    if cases.months is not None:
        sets = RiskSets.of(cases.months, cases.group.astype(bool))
        score = (features @ question.coefficients[0])[sets.order]
        hazard = np.exp(score - score.max())
        weights = np.zeros(len(score))
        if sets.event.any():
            weights[sets.order] = sets.expected_deaths(hazard, sets.at_risk(hazard))
        return (weights,)
    chance = np.exp(log_probabilities(features, question.coefficients))
    own = chance[np.arange(len(chance)), np.searchsorted(np.asarray(question.classes), cases.group)]
    return 1 - own, 1 - (chance**2).sum(axis=1)


def sums_manifest(question: ProbeQuestion) -> Manifest:
    """Arrays of the answer to a question."""
    size = question.coefficients.size
    shapes: dict[str, tuple[int, ...]] = {"loss": (1,)}
    if question.derivatives:
        shapes |= {"gradient": (size,), "hessian": (size * (size + 1) // 2,)}
    return Manifest(shapes=shapes, dtype="float64")


def sums_of(arrays: Mapping[str, Floats]) -> Sums | None:
    """The sums of an answer; an infinite loss where coefficients are too large, None where it is held back."""
    if arrays["loss"][0] == HELD_BACK:
        return None
    if arrays["loss"][0] == TOO_FAR:
        return Sums.loss_only(np.inf)
    return Sums.unpacked({"gradient": np.zeros(0), "hessian": np.zeros(0), **arrays})


def problem_with_sums(arrays: Mapping[str, Floats]) -> str:
    """What is wrong with sums that otherwise fit their manifest; empty = they may leave, and count."""
    loss = float(arrays["loss"][0])
    if loss in (TOO_FAR, HELD_BACK):
        silent = not any(value.any() for name, value in arrays.items() if name != "loss")
        return "" if silent else "it tells derivatives that it holds back"
    if loss < -_ROUNDING:
        return "its loss is negative"
    if any(np.abs(value).max(initial=0) > _LARGEST_SUM for value in arrays.values()):
        return "its sums are out of range"
    if "hessian" not in arrays:
        return ""
    hessian = Sums.unpacked(arrays).hessian
    spread = np.diag(hessian)
    allowed = _ROUNDING * (1 + spread.max(initial=0))
    if (spread < -allowed).any():
        return "its curvature is negative"
    bound = np.sqrt(np.maximum(spread, 0))
    possible = (np.abs(hessian) <= np.outer(bound, bound) + allowed).all()
    return "" if possible else "its curvature is that of no cases"

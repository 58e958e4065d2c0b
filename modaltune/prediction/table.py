"""The table of predictions: one row a case, columns as docs/predict.md says.

Shapes: n cases, C candidates, S time bins, O embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, modalities_of, readable
from modaltune.data.preprocessing import TaskSpace
from modaltune.errors import ConfigError, DataError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import embed_cases, expected_risk, probabilities_of, risk_of
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.models.learner import Learner
from modaltune.prediction.distance import distance_of
from modaltune.prediction.site import RESEARCH_ONLY, ModelAtSite
from modaltune.storage import write_bytes
from modaltune.tasks.head import TextHead

Columns = dict[str, Any]


def prediction_rows(at: ModelAtSite, rows: Sequence[int], after_case: Callable[[], None]) -> pd.DataFrame:
    """Predictions of some cases, read one after the other; blank for a case that the model cannot read.

    Args:
        rows: places in ``at.cases``.
        after_case: called once a case, for a progress bar.
    """
    embedded: list[dict[str, Tensor]] = []
    about, read = [], []
    for row in rows:
        case = at.cases[row].loaded()
        if readable(case, at.study.model.needs):
            read.append(row)
            embedded.append(embed_cases(at.learner, [case]))
        distance = distance_of(case, at.preprocessing, at.measured)
        about.append({"missing": ",".join(missing_inputs(at, row)), **_renamed(asdict(distance)), "far": distance.far})
        after_case()
    if not read:
        raise DataError(
            f"site {at.cohort.site}: none of {len(rows)} cases has the {' and '.join(at.study.model.needs)} that the"
            f" model ({at.study.model.kind}) cannot do without"
        )
    said = pd.DataFrame(_columns_of_tasks(at, embedded), index=read).reindex(list(rows)).reset_index(drop=True)
    frame = at.cohort.cases.iloc[list(rows)]
    ids = pd.DataFrame({"case_id": frame.index.astype(str), "split": frame["split"].to_numpy()})
    return pd.concat([ids, said, pd.DataFrame(about)], axis=1).assign(model=at.model, use=RESEARCH_ONLY)


def _columns_of_tasks(at: ModelAtSite, embedded: Sequence[Mapping[str, Tensor]]) -> Columns:
    """Columns of all tasks for cases whose embeddings are known."""
    columns: Columns = {}
    for task in at.study.tasks:
        space, embeddings = at.preprocessing.tasks[task.name], torch.cat([case[task.name] for case in embedded])
        probabilities = probabilities_of(at.learner, {task.name: embeddings}, task.name)
        columns |= task_columns(task, space, probabilities, risk_of(at.learner, {task.name: embeddings}, task.name))
        columns |= _text_columns(task, space, _cosines(at.learner, embeddings, task.name))
    return columns


def missing_inputs(at: ModelAtSite, row: int) -> list[str]:
    """What the model takes and a case lacks: modalities, and clinical columns without a value."""
    inputs = _modalities(at.study, at.cases[row])
    values = at.cohort.cases.iloc[row]
    known = {column.name: column.values for column in at.study.clinical}
    absent = [name for name, allowed in known.items() if not _usable(values.get(name), allowed)]
    return [*inputs, *absent]


def _modalities(study: Study, case: CaseTensors) -> list[str]:
    wanted = ["slides", *(["expression"] if study.gene_sets else []), *(modality.name for modality in study.modalities)]
    present = modalities_of(case)
    return [name for name in wanted if name not in present]


def _usable(value: object, allowed: Sequence[str]) -> bool:
    return value in allowed if allowed else value is not None and not pd.isna(value)  # type: ignore[call-overload]


def _renamed(distance: Mapping[str, float]) -> Columns:
    return {
        "expression_distance": distance["expression"],
        "expression_outliers": distance["outliers"],
        "slides_distance": distance["slides"],
    }


def names_of(task: TaskSpec, space: TaskSpace) -> list[str]:
    """What columns call the candidates: their values, or for survival ``bin1`` (earliest death), ``bin2``, ..."""
    if task.kind == "survival":
        return [f"bin{number}" for number in range(1, len(space.candidates) + 1)]
    return list(space.candidates)


def task_columns(task: TaskSpec, space: TaskSpace, probabilities: Floats, risk: Floats | None = None) -> Columns:
    """Columns of one task from probabilities ``[n, C]`` over its candidates.

    Args:
        risk: ``[n]`` of survival where the head gives it; None = from the probabilities.
    """
    names, start = names_of(task, space), task.name
    out: Columns = {f"{start}.predicted": [names[best] for best in probabilities.argmax(axis=1)]}
    out |= {f"{start}.probability.{name}": probabilities[:, place] for place, name in enumerate(names)}
    if task.kind == "ordinal":
        out[f"{start}.positive"] = probabilities[:, np.isin(space.candidates, task.positive)].sum(axis=1)
    if task.kind == "survival":
        months, alive = -expected_risk(probabilities, space), survival_curve(probabilities)
        out |= {f"{start}.risk": -months if risk is None else risk, f"{start}.expected_months": months}
        out |= {f"{start}.alive_after_{edge:.1f}_months": alive[:, place] for place, edge in enumerate(space.bin_edges)}
        out[f"{start}.median_months"] = median_months(alive, space.bin_edges)
    return out


def survival_curve(probabilities: Floats) -> Floats:
    """Probability ``[n, S - 1]`` to live beyond each inner edge, from probabilities ``[n, S]`` over the time bins."""
    out: Floats = 1 - np.cumsum(probabilities, axis=1)[:, :-1]
    return out.clip(0, 1)


def median_months(alive: Floats, edges: Sequence[float]) -> Floats:
    """Months ``[n]`` at which half are expected to have died, linear between edges; NaN beyond the last edge."""
    times = np.array([0.0, *edges])[::-1]
    curves = np.concatenate([np.ones((len(alive), 1)), alive], axis=1)[:, ::-1]
    return np.array([np.interp(0.5, curve, times) if curve[0] <= 0.5 else np.nan for curve in curves], dtype=np.float64)


@torch.no_grad()
def _cosines(learner: Learner, embeddings: Tensor, task: str) -> Floats | None:
    """Cosine ``[n, C]`` to each candidate's text; None for a head that knows no texts."""
    if not isinstance(learner.head, TextHead):
        return None
    out: Floats = learner.head.cosines(embeddings, task).double().cpu().numpy()
    return out


def _text_columns(task: TaskSpec, space: TaskSpace, cosines: Floats | None) -> Columns:
    if cosines is None:
        return {}
    out: Columns = {f"{task.name}.nearest_text": [space.texts[best] for best in cosines.argmax(axis=1)]}
    return out | {f"{task.name}.cosine.{name}": cosines[:, place] for place, name in enumerate(names_of(task, space))}


def require_table_name(path: Path) -> None:
    """Refuse a name that says neither parquet nor CSV."""
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise ConfigError(f"--out {path}: expected a name that ends in .parquet or .csv")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically, as its name says."""
    require_table_name(path)
    if path.suffix.lower() == ".csv":
        write_bytes(path, table.to_csv(index=False, float_format="%.6g").encode())
        return
    buffer = BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())

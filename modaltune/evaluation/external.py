"""Score a released model on other cases laid out like the TCGA tables (docs/data.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from modaltune.data.case_table import labelled
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.data.tcga import (
    TcgaTables,
    cancer_task,
    hospital_tables,
    read_tcga,
    with_cancer_tasks,
    with_location,
)
from modaltune.errors import DataError, FeatureFileError
from modaltune.evaluation.predictions import COSINE, Families, embed_cases, metric_rows, predict, renamed, scored
from modaltune.evaluation.survival import Censoring
from modaltune.federation.capability import check_coverage, reads_expression
from modaltune.federation.study import Study
from modaltune.federation.task import FURTHER, HEADLINES
from modaltune.models.learner import load_model
from modaltune.tasks.head import TextHead

LEAST_MEASURED = 0.5
"""Share of the model's genes below which a table is of other genes, or of other names."""


def evaluate_tables(
    model: Path,
    data: Path,
    cohort: str,
    *,
    expression: str = "rna",
    public_pem: str | None = None,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Metric rows (method ``federated``), per hospital and for all together.

    Every eligible case counts that the model can read and whose label it knows. Survival is weighted for the censoring
    of the hospital's eligible cases, or of all hospitals' together.

    Args:
        model: ``model/`` folder of a run.
        data, cohort: tables as for ``modaltune-simulate tcga``.
        expression: name of the expression table.
        public_pem: the model must be signed by the owner of this public key.
        say: told what was left out of the tables, which labelled cases are not scored, and how many they are.
    """
    learner, study, preprocessing = load_model(model, public_pem)
    tables = _called_as_in(study, read_tcga(data, cohort, expression=expression))
    known = [task.name for task in study.tasks if task.name in tables.tasks]
    if not known:
        raise DataError(
            f"{cohort} has {', '.join(tables.tasks)} but the model was trained for"
            f" {', '.join(task.name for task in study.tasks)}; choose the cohort that the model was trained on"
        )
    if say is not None:
        for note in tables.notes:
            say(note)
    parts, plain, rows = list[pd.DataFrame](), list[pd.DataFrame](), []
    headlines = (HEADLINES,)
    for hospital in tables.hospitals:
        site = _cohort(tables, hospital, study, preprocessing)
        cases = prepare(site, study, preprocessing)
        embeddings = embed_cases(learner, cases)
        parts.append(predict(learner, study, preprocessing, site, cases, None, embeddings))
        rows += _rows(parts[-1], site.cases, study, preprocessing, hospital)
        if isinstance(learner.head, TextHead):
            plain.append(predict(learner, study, preprocessing, site, cases, None, embeddings, temperature=False))
            rows += [
                renamed(row, COSINE) for row in _rows(plain[-1], site.cases, study, preprocessing, hospital, headlines)
            ]
    everybody = pd.concat(parts, ignore_index=True)
    if say is not None:
        for note in (*_genes_note(tables, preprocessing), *_not_scored(tables, everybody, study, preprocessing)):
            say(note)
    rows += _rows(everybody, tables.cases, study, preprocessing, "all")
    if plain:
        without = pd.concat(plain, ignore_index=True)
        rows += [renamed(row, COSINE) for row in _rows(without, tables.cases, study, preprocessing, "all", headlines)]
    return rows


def _called_as_in(study: Study, tables: TcgaTables) -> TcgaTables:
    """The tables, their labels as tasks of their cancer where the model has such tasks."""
    own = {task: cancer_task(tables.cohort, task) for task in tables.tasks}
    if not {called for task, called in own.items() if called != task} & {task.name for task in study.tasks}:
        return tables
    return replace(tables, tasks=tuple(own.values()), cases=with_cancer_tasks(tables.cases, tables.cohort))


def _genes_note(tables: TcgaTables, preprocessing: Preprocessing) -> Iterator[str]:
    absent = genes_absent(tables.expression, preprocessing) if preprocessing.expression is not None else 0
    if absent:
        yield f"{absent} of {len(preprocessing.genes)} genes of the model are not in the tables and count as average."


def _rows(
    table: pd.DataFrame,
    cases: pd.DataFrame,
    study: Study,
    preprocessing: Preprocessing,
    hospital: str,
    families: Families = (HEADLINES, FURTHER),
) -> list[dict[str, Any]]:
    return metric_rows(
        {task.name: [table] for task in study.tasks},
        study,
        preprocessing,
        method="federated",
        hospital=hospital,
        seed=study.seed,
        censoring=Censoring.of_cases([cases], study.endpoints),
        families=families,
    )


def _not_scored(
    tables: TcgaTables, predicted: pd.DataFrame, study: Study, preprocessing: Preprocessing
) -> Iterator[str]:
    """A sentence for each task of which labelled cases are not scored."""
    for spec in study.tasks:
        if spec.name not in tables.tasks:
            continue
        given = int(labelled(tables.cases, spec.name).sum())
        read = int((predicted["task"] == spec.name).sum())
        known = len(scored(predicted, spec, preprocessing.tasks[spec.name].candidates))
        reasons = {
            f"lack {' or '.join(study.model.needs)}, which the model needs": given - read,
            "have a label that the model was not trained on": read - known,
        }
        why = "; ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        if why:
            yield f"{spec.name}: {given - known} of {given} labelled cases are not scored: {why}."


def _cohort(tables: TcgaTables, hospital: str, study: Study, preprocessing: Preprocessing) -> Cohort:
    share = hospital_tables(tables, hospital)
    width = next((bag.features.shape[1] for bag in share.bags.values()), study.slides.in_width)
    if width != study.slides.in_width:
        raise FeatureFileError(
            f"{tables.cohort}: image tokens have {width} features but the model needs {study.slides.in_width};"
            " choose the cohort that the model was trained on"
        )
    tasks = tuple(task.name for task in study.tasks if task.name in tables.tasks)
    scaled = [task.name for task in study.tasks if any(label.scale for label in task.labels)]
    return Cohort(
        site=hospital,
        tasks=tasks,
        cases=with_location(share.cases, tables.cohort, scaled).assign(split="test"),
        expression=panel_expression(share.expression, study, preprocessing, hospital),
        bags={case: (bag,) for case, bag in share.bags.items()},
    )


def panel_expression(
    expression: pd.DataFrame | None, study: Study, preprocessing: Preprocessing, hospital: str
) -> pd.DataFrame | None:
    """The table, where the model reads expression; a gene that was not measured counts as average.

    Raises:
        DataError: it has less than half of the model's genes, or, where a study takes every site's own, fills no set.
    """
    if expression is None or preprocessing.expression is None or not reads_expression(study):
        return None
    if study.gene_panel == "union":
        check_coverage(hospital, list(expression.columns), study)
        return expression
    genes = len(preprocessing.genes)
    measured = genes - genes_absent(expression, preprocessing)
    if measured < LEAST_MEASURED * genes:
        raise DataError(
            f"{hospital}: the expression table has {measured or 'none'} of the model's {genes} genes, expected at least"
            " half; name its columns by the gene symbols that the model was trained on"
        )
    return expression


def genes_absent(expression: pd.DataFrame, preprocessing: Preprocessing) -> int:
    """Genes of the model that a table lacks."""
    return len(preprocessing.genes) - int(pd.Index(preprocessing.genes).isin(expression.columns).sum())

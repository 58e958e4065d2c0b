"""What the GDC API says about cases and diagnostic slides, open tier.

``/cases`` and ``/files`` answer in pages. Only the fields named here are asked for; a field that GDC does not know, or
has moved (follow-up and sex moved in 2025), is left out of its answer and stays None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from modaltune.errors import FetchError
from modaltune.federation.study import first_problem
from simulation.fetch.connection import LATER, Connection

GDC = "https://api.gdc.cancer.gov"
PAGE = 500


class Project(BaseModel):
    """A TCGA project, such as TCGA-BRCA."""

    project_id: str


class Demographic(BaseModel):
    """Who the patient is; days count from the index date, mostly the diagnosis."""

    vital_status: str | None = None
    days_to_death: float | None = None
    age_at_index: float | None = None
    sex_at_birth: str | None = None
    gender: str | None = None


class Diagnosis(BaseModel):
    """One of a patient's diagnoses; only one is the disease that the project studies."""

    submitter_id: str = ""
    diagnosis_is_primary_disease: bool | None = None
    classification_of_tumor: str | None = None
    primary_diagnosis: str | None = None
    morphology: str | None = None
    ajcc_pathologic_stage: str | None = None
    tumor_grade: str | None = None
    age_at_diagnosis: float | None = None
    days_to_last_follow_up: float | None = None


class FollowUp(BaseModel):
    """One contact after the diagnosis."""

    days_to_follow_up: float | None = None


class TissueSourceSite(BaseModel):
    """The centre that collected the tissue."""

    name: str | None = None


class Case(BaseModel):
    """One patient."""

    submitter_id: str
    project: Project
    demographic: Demographic = Demographic()
    diagnoses: tuple[Diagnosis, ...] = ()
    follow_ups: tuple[FollowUp, ...] = ()
    tissue_source_site: TissueSourceSite = TissueSourceSite()


class SlideFile(BaseModel):
    """One slide image; its name starts with the barcode."""

    file_id: str
    file_name: str
    file_size: int
    md5sum: str


_CASE_FIELDS = (
    "submitter_id",
    "project.project_id",
    "tissue_source_site.name",
    "follow_ups.days_to_follow_up",
    *(f"demographic.{name}" for name in Demographic.model_fields),
    *(f"diagnoses.{name}" for name in Diagnosis.model_fields),
)
_Record = TypeVar("_Record", bound=BaseModel)


def read_release(connection: Connection, base: str) -> str:
    """The data release that the API serves at the moment."""
    status = connection.json(f"{base}/status", {})
    release = status.get("data_release") if isinstance(status, dict) else None
    if not isinstance(release, str):
        raise FetchError(f"{base}/status: no data release in the answer; expected the GDC API, check --base-gdc")
    return release


def read_cases(connection: Connection, base: str, projects: Sequence[str]) -> list[Case]:
    """All cases of some projects, by barcode.

    Raises:
        FetchError: no answer, none of the expected form, an incomplete one, or a project without a case.
    """
    filters = _among("project.project_id", projects)
    cases = _pages(connection, f"{base}/cases", filters, _CASE_FIELDS, "submitter_id", Case)
    held = {case.project.project_id for case in cases}
    if lacking := [project for project in projects if project not in held]:
        raise FetchError(f"{base}/cases: no case of {lacking[0]}; expected some, check --base-gdc, or {LATER}")
    return cases


def read_slides(connection: Connection, base: str, projects: Sequence[str]) -> list[SlideFile]:
    """All diagnostic slides of some projects that anybody may download; a project may have none."""
    conditions = {
        "data_type": ["Slide Image"],
        "experimental_strategy": ["Diagnostic Slide"],
        "access": ["open"],
        "cases.project.project_id": projects,
    }
    filters = {"op": "and", "content": [_among(field, values) for field, values in conditions.items()]}
    return _pages(connection, f"{base}/files", filters, tuple(SlideFile.model_fields), "file_id", SlideFile)


def _among(field: str, values: Sequence[str]) -> dict[str, Any]:
    return {"op": "in", "content": {"field": field, "value": list(values)}}


def _pages(
    connection: Connection,
    url: str,
    filters: Mapping[str, Any],
    fields: Sequence[str],
    key: str,
    model: type[_Record],
) -> list[_Record]:
    """All pages, sorted by a key that no two records share; the server may send smaller pages than asked for."""
    records: list[_Record] = []
    total = 1
    while len(records) < total:
        parameters = {
            "filters": json.dumps(filters),
            "fields": ",".join(fields),
            "format": "json",
            "sort": f"{key}:asc",
            "size": str(PAGE),
            "from": str(len(records)),
        }
        hits, total = _page(connection.json(url, parameters), url)
        records += [_record(hit, model, url, number) for number, hit in enumerate(hits, start=len(records) + 1)]
        if not hits:
            break
    if len(records) != total or len({getattr(record, key) for record in records}) != total:
        raise FetchError(f"{url}: {len(records)} records read, some perhaps twice, but it says {total}; {LATER}")
    return records


def _page(answer: Any, url: str) -> tuple[list[Any], int]:
    try:
        return list(answer["data"]["hits"]), int(answer["data"]["pagination"]["total"])
    except (KeyError, TypeError, ValueError):
        raise FetchError(
            f"{url}: no 'data.hits' with 'data.pagination.total' in the answer; expected the GDC API, check --base-gdc"
        ) from None


def _record(hit: Any, model: type[_Record], url: str, number: int) -> _Record:
    try:
        return model.model_validate(hit)
    except ValidationError as error:
        raise FetchError(
            f"{url}: record {number}: {first_problem(error)}; this version of the API is unknown"
        ) from None

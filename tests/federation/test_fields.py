from __future__ import annotations

import json

from rich.console import Console

from modaltune.federation.fields import field_table, study_fields
from modaltune.federation.settings import TrainingSpec


def test_every_field_says_what_it_means() -> None:
    assert [f"{field.table}.{field.name}" for field in study_fields() if not field.meaning] == []


def test_defaults_are_those_of_the_schema() -> None:
    found = {field.name: field for field in study_fields() if field.table == "training"}
    assert list(found) == list(TrainingSpec.model_fields)
    usual = TrainingSpec().model_dump()
    assert {name: json.loads(field.default or "") for name, field in found.items()} == usual
    assert found["wire"].choices == ("fp32", "fp16", "int8")


def test_what_has_to_be_given_is_marked_and_lists_are_told_from_tables() -> None:
    found = {(field.table, field.name): field for field in study_fields()}
    assert found["slides", "in_width"].default is None
    assert found["tasks[]", "template"].default is None
    assert ("", "training") not in found
    assert found["", "quorum"].default == "1"
    console = Console(record=True, width=140)
    console.print(field_table(study_fields()))
    assert "training.local_epochs" in console.export_text()

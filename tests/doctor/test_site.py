"""Broken site folders: the right check says so, every other one still runs, and nobody is named."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from modaltune.data.site import load_site
from modaltune.doctor.finding import SEVERITY, as_document, worst
from modaltune.doctor.site import CHECKS, examine
from modaltune.doctor.site_files import SiteFiles
from modaltune.encoders.small import small_slide_encoder
from modaltune.encoders.text import text_encoder
from modaltune.errors import ModalTuneError
from modaltune.federation.inputs import SlideSpec, TextSpec
from modaltune.federation.study import Study
from modaltune.storage import digest_state
from tests.doctor.sites import BROKEN, IDS, WIDTH, drop


def assert_a_document(document: object) -> None:
    assert isinstance(document, dict)
    assert set(document) == {"subject", "status", "checks"}
    for row in document["checks"]:
        assert list(row) == ["check", "status", "finding", "fix"]
        assert all(isinstance(value, str) for value in row.values())
        assert row["status"] in SEVERITY
        assert row["finding"]
        assert bool(row["fix"]) == (row["status"] != "ok")
        assert "\n" not in row["finding"] + row["fix"]


def test_a_good_site_passes_every_check(site: Path) -> None:
    findings = examine(SiteFiles(site))
    assert {finding.status for finding in findings} == {"ok"}, [f for f in findings if f.status != "ok"]
    assert [finding.check for finding in findings][-1] == "loading"
    assert {finding.check for finding in findings} == {*CHECKS, "loading"}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_is_found_by_its_check_and_all_others_run(what: str, site: Path, study: Study) -> None:
    break_it, check, status, part = BROKEN[what]
    break_it(site)
    findings = examine(SiteFiles(site, study))
    assert {finding.check for finding in findings} >= set(CHECKS)
    matching = [f for f in findings if f.check == check and f.status == status and part in f.finding]
    assert matching, [f for f in findings if f.check == check]
    document = as_document("site H1", findings)
    assert_a_document(document)
    text = json.dumps(document)
    assert not [case for case in IDS if case.casefold() in text.casefold()]
    assert "itself failed" not in text


@pytest.mark.parametrize("what", [what for what, entry in BROKEN.items() if entry[2] == "error"])
def test_what_stops_one_check_is_an_error_there_alone(what: str, site: Path, study: Study) -> None:
    break_it, check, _, _ = BROKEN[what]
    break_it(site)
    blamed = {finding.check for finding in examine(SiteFiles(site, study)) if finding.status == "error"}
    assert blamed - {"encoders"} <= {check} | CONSEQUENCES.get(what, set())


CONSEQUENCES = {  # rows without a case, because the case is written in another way
    "case_id in other letters": {"joins"},
    "a patient in two splits": {"expression", "joins"},
}


def test_many_problems_are_all_found_at_once(site: Path, study: Study) -> None:
    wrong = ["case_id twice", "unknown split", "an unknown diagnosis", "event is 2", "age in days"]
    wrong += ["expression has NaN", "NaN in features", "normal tissue in slides", "a modality absent"]
    for what in wrong:
        BROKEN[what][0](site)
    found = examine(SiteFiles(site, study))
    for what in wrong:
        _, check, status, part = BROKEN[what]
        assert [f for f in found if f.check == check and f.status == status and part in f.finding], what


@pytest.mark.parametrize("what", [what for what, entry in BROKEN.items() if entry[2] == "error"])
def test_whatever_training_refuses_the_doctor_refuses(what: str, site: Path, study: Study) -> None:
    BROKEN[what][0](site)
    labels = {task.name: task.values for task in study.tasks if task.kind != "survival"}
    try:
        load_site(site, split_salt="", labels=labels)
    except ModalTuneError:
        assert worst(examine(SiteFiles(site))) == "error"


def test_a_study_with_the_right_encoders_is_satisfied(site: Path, study: Study) -> None:
    weights = digest_state(small_slide_encoder(WIDTH, width=16, depth=2).state_dict())
    slides = SlideSpec(in_width=WIDTH, width=16, depth=2, sha256=weights)
    right = study.model_copy(update={"slides": slides, "text": TextSpec(sha256=text_encoder().sha256)})
    findings = examine(SiteFiles(site, right))
    assert [f.status for f in findings if f.check == "encoders"] == ["ok", "ok"]
    assert worst(findings) != "error"


def test_large_sites_are_read_by_blocks_and_that_is_said(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modaltune.doctor.bags.READ_LIMIT", 1)
    findings = examine(SiteFiles(site))
    assert any("4 blocks of 256 rows of each" in finding.finding for finding in findings)
    assert [f.status for f in findings if f.check == "loading"] == ["warning"]
    BROKEN["NaN in features"][0](site)
    assert worst(examine(SiteFiles(site))) == "error"


def test_counts_are_held_back_as_from_a_study(site: Path, study: Study) -> None:
    strict = study.model_copy(update={"privacy": study.privacy.model_copy(update={"min_cell": 8})})
    shown = [f.finding for f in examine(SiteFiles(site, strict)) if f.check == "counts"]
    assert any("val: I <8, II <8, III <8, IV <8" in text for text in shown)


def test_without_a_split_column_a_study_shows_the_sizes(site: Path, study: Study) -> None:
    drop("cases.parquet", "split")(site)
    (alone,) = [f for f in examine(SiteFiles(site)) if f.check == "split"]
    assert "hash" in alone.finding
    (with_study,) = [f for f in examine(SiteFiles(site, study)) if f.check == "split"]
    assert "train" in with_study.finding


def test_every_endpoint_is_examined(site: Path) -> None:
    toml, cases = site / "site.toml", pd.read_parquet(site / "cases.parquet")
    toml.write_text(toml.read_text().replace('"survival"]', '"survival", "relapse_free_survival"]'))
    (said,) = (found for found in examine(SiteFiles(site)) if found.check == "survival" and found.status == "error")
    assert "task 'relapse_free_survival' needs column 'relapse_free_time_months'" in said.finding
    relapses = {"relapse_free_time_months": cases["time_months"] / 2, "relapse_free_event": 1 - cases["event"]}
    cases.assign(**relapses).to_parquet(site / "cases.parquet")
    found = [found for found in examine(SiteFiles(site)) if found.check == "survival"]
    assert [one.finding.split(":")[0] for one in found if one.status == "ok"] == ["survival", "relapse_free_survival"]
    (said,) = (one for one in found if one.status == "warning")
    assert "check that relapse_free_event 1 means the event" in said.fix

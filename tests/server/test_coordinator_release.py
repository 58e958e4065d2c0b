"""What leaves the coordinator as a release: the gate's word, the card, one signature, a line in the audit log."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import server.cli
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError, ModalTuneError, ModelFileError, ReleaseRefused
from modaltune.federation.study import Study
from modaltune.storage import append_json_line, digest_folder, digest_state, save_state, write_json, write_text
from modaltune.trust.audit import verify_log
from modaltune.trust.release import verify_folder
from server.coordinator.home import Home, Settings
from server.coordinator.release import CARD, GATE, release
from server.coordinator.setup import init
from tests.server.predictions import rows_of, two_sites
from tests.server.run_folder import round_rows

WEIGHTS = {"weight": torch.ones(3)}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    init(found, Settings(hosts=("localhost",), superlink_port=1))
    return found


def a_run(home: Home, study: Study, preprocessing: Preprocessing, predictions: pd.DataFrame) -> Path:
    """A finished simulation in the coordinator's home folder."""
    folder = home.runs / "first"
    write_text(folder / "study.json", study.to_json())
    submission = {"flower": 1, "bundle": "0" * 64, "time": "2026-01-01T00:00:00+00:00"}
    write_json(folder / "run.json", {"study": study.digest, "submissions": [submission]})
    write_text(folder / "preprocessing.json", preprocessing.to_json())
    write_text(folder / "model" / "study.json", study.to_json())
    save_state(folder / "model" / "weights.safetensors", WEIGHTS)
    for row in round_rows():
        append_json_line(folder / "rounds.jsonl", row)
    write_json(folder / "metrics.json", rows_of(study, preprocessing, predictions))
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    about = {"train": 300, "val": 40, "test": 120, "tasks": ["survival"], "modalities": ["slides", "clinical"]}
    patches = {"patches": {"patch-encoder": "uni2_h", "patch-mpp": 0.5}}
    write_json(folder / "summary.json", {"sites": {"H1": about | patches, "H2": about | {"modalities": ["clinical"]}}})
    write_json(
        folder / "status.json",
        {"status": "DEGRADED", "weights": digest_state(WEIGHTS), "model": digest_folder(folder / "model")},
    )
    (folder / "DONE").touch()
    return folder


def command(monkeypatch: pytest.MonkeyPatch, home: Home, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["modaltune-server", "release", *arguments, "--home", str(home.folder)])
    with pytest.raises(SystemExit) as ended:
        server.cli.main()
    return int(ended.value.code or 0)


def events(home: Home) -> list[dict[str, Any]]:
    return [json.loads(line) for line in home.audit.read_text().splitlines()]


def test_a_release_is_signed_and_complete_and_made_once(
    home: Home, gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    run = a_run(home, gate_study, gate_preprocessing, two_sites(0.6, 0.3))
    (run / "DONE").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        release(home, "first", None)
    (run / "DONE").touch()
    folder = release(home, "first", None)
    signed = verify_folder(folder, home.public_key.read_text())
    assert set(signed.files) == {"study.json", "weights.safetensors", CARD, GATE}
    assert (signed.study, signed.override) == (gate_study.digest, "")
    assert verify_log(home.audit, home.public_key.read_text()).events["model-released"] == 1
    with pytest.raises(ConfigError, match="not overwritten"):
        release(home, "first", None)


@pytest.mark.parametrize("name", ["weights.safetensors", "study.json", "label_targets.safetensors"])
def test_a_model_that_is_not_the_runs_is_not_signed(
    name: str, home: Home, gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    """The weights alone do not make a model: label targets say which direction means which class."""
    run = a_run(home, gate_study, gate_preprocessing, two_sites(0.6, 0.3))
    with (run / "model" / name).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(ModelFileError, match="not the model that the run ended with"):
        release(home, "first", None)


def test_a_release_that_cannot_be_written_down_is_not_made(
    home: Home, gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    a_run(home, gate_study, gate_preprocessing, two_sites(0.6, 0.3))
    home.audit.write_text("")
    with pytest.raises(ModalTuneError):
        release(home, "first", None)
    assert not (home.releases / "first").exists()


def test_the_card_says_for_whom_the_model_was_tested_and_for_whom_not(
    home: Home, gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    study = gate_study.model_copy(update={"roster": ("H1", "H2", "H3")})
    a_run(home, study, gate_preprocessing, two_sites(0.6, 0.3))
    card = (release(home, "first", None) / CARD).read_text()
    assert "Research use only" in card
    assert study.digest in card
    assert "4 rounds by 3 hospitals: H1, H2, H3" in card
    assert "rounds with a hospital missing or refused: 2, 3" in card
    assert "| H2 | 300 | 120 | survival | clinical |" in card
    assert "| H3 | said nothing | | | |" in card
    assert "- Patches, as the hospitals' files say: patch-encoder uni2_h, patch-mpp 0.5" in card
    score = next(line for line in card.splitlines() if line.startswith("| H1 | survival | c_index |"))
    value, interval, cases, deaths, against = (cell.strip() for cell in score.split("|")[4:9])
    assert 0.5 < float(value) < 1
    assert interval.count(" to ") == 1
    assert (cases, int(deaths) > 50) == ("120", True)
    assert against.startswith("+0.")
    assert "- Patients of H3: survival (no label there, too few cases, or a score that is not defined)." in card
    assert "Nothing that was assessed spoke against the release." in card


def test_a_release_that_a_hospital_loses_by_is_refused_in_one_line_and_written_down(
    home: Home,
    gate_study: Study,
    gate_preprocessing: Preprocessing,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a_run(home, gate_study, gate_preprocessing, two_sites(0.0, 0.9))
    assert command(monkeypatch, home, "first") == 2
    said = capsys.readouterr().err.strip()
    assert "H1 is served worse than by its own model" in said
    assert '--override "REASON"' in " ".join(said.split())
    assert not (home.releases / "first").exists()
    last = events(home)[-1]
    assert last["event"] == "release-refused"
    assert len(last["facts"]["problems"]) == 2


def test_an_override_is_on_the_card_in_the_signature_and_in_the_audit_log(
    home: Home,
    gate_study: Study,
    gate_preprocessing: Preprocessing,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a_run(home, gate_study, gate_preprocessing, two_sites(0.0, 0.9))
    reason = "H1 and H2 keep\ntheir own models"
    assert command(monkeypatch, home, "first", "--override", reason, "--json") == 0
    folder = Path(json.loads(capsys.readouterr().out)["release"])
    flat = "H1 and H2 keep their own models"
    assert verify_folder(folder, home.public_key.read_text()).override == flat
    assert f"The release gate refused this model. It was released nevertheless: {flat}" in (folder / CARD).read_text()
    gate = json.loads((folder / GATE).read_text())
    assert (gate["override"], len(gate["problems"]), len(gate["comparisons"])) == (flat, 2, 2)
    last = events(home)[-1]
    assert (last["event"], last["facts"]["override"]) == ("model-released", flat)
    assert last["facts"]["problems"] == gate["problems"]


def test_an_empty_override_is_none(home: Home, gate_study: Study, gate_preprocessing: Preprocessing) -> None:
    a_run(home, gate_study, gate_preprocessing, two_sites(0.0, 0.9))
    with pytest.raises(ReleaseRefused):
        release(home, "first", None, "  \n")


def test_an_override_that_was_not_needed_is_not_recorded(
    home: Home, gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    a_run(home, gate_study, gate_preprocessing, two_sites(0.6, 0.3))
    folder = release(home, "first", None, "to be safe")
    assert verify_folder(folder, None).override == ""


def test_a_run_folder_outside_the_home_can_be_released(
    home: Home, gate_study: Study, gate_preprocessing: Preprocessing, tmp_path: Path
) -> None:
    folder = a_run(home, gate_study, gate_preprocessing, two_sites(0.6, 0.3)).rename(tmp_path / "simulated")
    assert release(home, str(folder), None) == home.releases / "simulated"


def test_a_model_without_any_test_score_is_not_released(
    home: Home, gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    run = a_run(home, gate_study, gate_preprocessing, two_sites(0.6, 0.3))
    (run / "metrics.json").unlink()
    with pytest.raises(ReleaseRefused, match="survival has no test score at any hospital"):
        release(home, "first", None)

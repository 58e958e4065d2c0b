"""The commands as people run them: exit codes, one JSON document, and real sites."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import client.cli
import modaltune.cli
from modaltune.data.tcga import DIAGNOSES
from modaltune.federation.study import Study
from simulation.tcga import build_tcga
from tests.doctor.sites import BROKEN, IDS
from tests.doctor.test_site import assert_a_document

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command line: its exit status, stdout and stderr."""

    def call(main: Callable[[], None], *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.mark.parametrize("main", [modaltune.cli.main, client.cli.main])
def test_a_good_site_ends_with_0_and_one_document(main: Callable[[], None], run: Run, site: Path) -> None:
    code, out, err = run(main, "doctor", site, "--json")
    assert (code, out.count("\n"), err) == (0, 1, "")
    document = json.loads(out)
    assert_a_document(document)
    assert (document["subject"], document["status"]) == ("site H1", "ok")


def test_warnings_are_allowed(run: Run, site: Path) -> None:
    BROKEN["age absent"][0](site)
    code, out, _ = run(modaltune.cli.main, "doctor", site, "--json")
    assert (code, json.loads(out)["status"]) == (0, "warning")


def test_an_error_ends_with_2_and_the_table_names_nobody(run: Run, site: Path) -> None:
    BROKEN["an identifier as label"][0](site)
    code, out, err = run(modaltune.cli.main, "doctor", site)
    assert (code, out) == (2, "")
    assert "error" in err
    assert "Traceback" not in err
    assert not [case for case in IDS if case in err]


def test_a_folder_that_is_not_there_is_a_finding(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(modaltune.cli.main, "doctor", tmp_path / "nowhere", "--json")
    assert code == 2
    assert "no such site folder" in json.loads(out)["checks"][0]["finding"]


def test_a_study_is_read_from_its_file(run: Run, site: Path, study: Study, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(study.to_json())
    _, out, _ = run(modaltune.cli.main, "doctor", site, "--study", tmp_path / "study.json", "--json")
    assert "in study trial" in out


MISTAKES = {
    "--study FILE": "--study needs a site folder",
    "SITE --study FILE": "no such study file",
    "SITE --coordinator here": "expected HOST:PORT",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(arguments: str, run: Run, site: Path, tmp_path: Path) -> None:
    given = [{"SITE": site, "FILE": tmp_path / "absent.json"}.get(word, word) for word in arguments.split()]
    code, out, err = run(client.cli.main, "doctor", *given, "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert MISTAKES[arguments] in err


def test_the_client_adds_the_network(run: Run, site: Path) -> None:
    code, out, _ = run(client.cli.main, "doctor", site, "--coordinator", "nowhere.invalid:1", "--json")
    found = {row["check"]: row["status"] for row in json.loads(out)["checks"]}
    assert code == 2
    assert found["dns"] == "error"
    assert found["cases"] == "ok"


def test_the_command_starts_without_torch_and_scipy() -> None:
    """Both take longer to import than the doctor needs for a site."""
    code = "import modaltune.cli, sys; sys.exit(sorted({'torch', 'scipy.stats'} & sys.modules.keys()) or None)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.tcga
@pytest.mark.integration
@pytest.mark.parametrize("cohort", sorted(DIAGNOSES))
def test_the_doctor_finds_no_error_in_a_site_of_a_cohort(cohort: str, run: Run, tcga_dir: Path, tmp_path: Path) -> None:
    hospitals = pd.read_parquet(tcga_dir / cohort / "clinical.parquet", columns=["hospital"])["hospital"]
    smallest = str(hospitals.value_counts().idxmin())
    (folder,) = build_tcga(tcga_dir, cohort, tmp_path / cohort, hospitals=[smallest])
    code, out, err = run(modaltune.cli.main, "doctor", folder, "--json")
    assert code == 0, [row for row in json.loads(out)["checks"] if row["status"] == "error"]
    assert "TCGA-" not in out + err

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from modaltune.doctor import installation
from modaltune.doctor.finding import Finding, run_checks
from modaltune.doctor.installation import CHECKS, Machine, room


def findings_of(check: str, machine: Machine | None = None) -> list[Finding]:
    return run_checks({check: CHECKS[check]}, machine or Machine())


def test_every_check_of_this_installation_runs_and_none_is_an_error() -> None:
    findings = run_checks(CHECKS, Machine())
    assert {finding.check for finding in findings} == set(CHECKS)
    assert not [finding for finding in findings if finding.status == "error"]


def test_a_version_other_than_the_tested_one_is_a_warning(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# comment\nnumpy==0.0.1\nsomething-else==1\n")
    found = findings_of("packages", Machine(constraints))
    (warned,) = [finding for finding in found if finding.status == "warning"]
    assert "numpy" in warned.finding
    assert "tested: 0.0.1" in warned.finding
    assert "something-else" not in warned.finding


def test_packages_that_are_absent_or_out_of_range_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["no-such-package>=1", "numpy<1", "pytest>=1 ; extra == 'dev'"]
    monkeypatch.setattr(installation, "requires", lambda _: needed)
    absent, wrong = findings_of("packages", Machine(Path("nowhere")))
    assert (absent.status, absent.finding) == ("error", "not installed: no-such-package")
    assert wrong.finding.startswith("outside the range: numpy ")


def test_openslide_is_missed_with_the_way_to_install_it() -> None:
    (found,) = findings_of("openslide")
    if importlib.util.find_spec("openslide") is None:
        assert found.status == "warning"
        assert "[slides]" in found.fix
    else:
        assert found.status == "ok"


def test_a_folder_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    (found,) = room("cache", tmp_path / "a" / "b")
    assert str(tmp_path) in found.finding


@pytest.mark.parametrize(("roomy", "tight", "status"), [(0, 0, "ok"), (2**62, 0, "warning"), (2**62, 2**62, "error")])
def test_free_space_is_judged(roomy: int, tight: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "ROOMY", roomy)
    monkeypatch.setattr(installation, "TIGHT", tight)
    (found,) = room("cache", Path())
    assert found.status == status


def test_a_folder_without_permission_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    (found,) = room("cache", tmp_path)
    assert (found.status, "no permission" in found.finding) == ("error", True)


def test_a_check_that_breaks_stops_no_other() -> None:
    def broken(_: object) -> installation.Found:
        yield Finding("ok", "first")
        raise KeyError("TCGA-AA-0001")

    def blocked(_: object) -> installation.Found:
        raise PermissionError(13, "Permission denied", "TCGA-AA-0001.h5")
        yield

    found = run_checks({"broken": broken, "blocked": blocked, "python": CHECKS["python"]}, Machine())
    assert [finding.status for finding in found] == ["ok", "error", "error", "ok"]
    assert "KeyError" in found[1].finding
    assert "Permission denied" in found[2].finding
    assert not any("TCGA" in finding.finding + finding.fix for finding in found)

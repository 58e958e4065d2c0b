"""Runs as the coordinator follows them: through the files of a run folder, without the services where those decide."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer

import server.cli
from modaltune.errors import ConfigError, FederationError, RunFailed
from modaltune.federation.study import Study
from modaltune.storage import append_json_line, write_json, write_text
from modaltune.trust.audit import AuditLog
from server.coordinator import runs
from server.coordinator.draft import write_study
from server.coordinator.home import Home, Settings
from server.coordinator.journal import RunJournal
from server.coordinator.link import FlowerRun
from server.coordinator.runs import Run, all_runs, cancel_run, find_run, follow, resume_run, start_run
from server.coordinator.setup import init
from server.label_query import Inquiry
from tests.server.run_folder import round_rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A coordinator whose services do not run: nothing listens on port 1."""
    found = Home(tmp_path_factory.mktemp("coordinator") / "home")
    init(found, Settings(hosts=("localhost",), superlink_port=1))
    return found


@pytest.fixture
def run(home: Home, tiny_study: Study, request: pytest.FixtureRequest) -> Run:
    """A run that was submitted."""
    run = Run(home.runs / request.node.name.replace("[", "-").rstrip("]"))
    write_text(run.study, tiny_study.to_json())
    submission = {"flower": 1, "bundle": "0" * 64, "time": "2026-01-01T00:00:00+00:00"}
    write_json(run.folder / "run.json", {"study": tiny_study.digest, "submissions": [submission]})
    return run


def rounds_of(home: Home, run: Run) -> tuple[dict[str, Any], list[int]]:
    """Final status, and the rounds that were told."""
    told: list[Mapping[str, Any]] = []
    return follow(home, run, told.append), [row["round"] for row in told]


def test_a_draft_that_is_no_study_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    for roster, problem in ((["A1", "A1"], "roster must name each site once"), (["A 1"], "roster.0")):
        with pytest.raises(ConfigError, match=problem):
            write_study(path, "blank", roster, "small", 32, None)
        assert not path.exists()


def test_a_home_without_a_coordinator_says_what_to_do(tmp_path: Path, tiny_study: Study) -> None:
    home = Home(tmp_path / "nobody")
    write_text(tmp_path / "study.json", tiny_study.to_json())
    with pytest.raises(ConfigError, match="no coordinator here; make one with: modaltune-server init"):
        start_run(home, tmp_path / "study.json", None)
    with pytest.raises(ConfigError, match="no coordinator here"):
        find_run(home, "first")


@pytest.mark.parametrize("status", ["OK", "DEGRADED"])
def test_a_run_is_followed_to_the_end_and_every_round_is_told(home: Home, run: Run, status: str) -> None:
    for row in round_rows():
        append_json_line(run.folder / "rounds.jsonl", row)
    write_json(run.folder / "status.json", {"status": status, "weights": "abc"})
    (run.folder / "DONE").touch()
    final, told = rounds_of(home, run)
    assert (final["status"], told) == (status, [0, 1, 2, 3, 4])


def test_a_run_is_not_at_its_end_before_model_and_report_are_complete(run: Run) -> None:
    write_json(run.folder / "status.json", {"status": "OK"})
    assert not run.final
    (run.folder / "DONE").touch()
    assert run.final


@pytest.mark.parametrize(("status", "code"), [("OK", 0), ("DEGRADED", 3)])
def test_the_exit_status_of_a_run_is_its_own(
    home: Home, run: Run, status: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(run.folder / "status.json", {"status": status, "weights": "abc"})
    (run.folder / "DONE").touch()
    with pytest.raises(typer.Exit) if code else nullcontext() as ended:
        server.cli.follow(home, run, wait=True, json=True)
    assert ended is None or ended.value.exit_code == code
    assert json.loads(capsys.readouterr().out)["status"] == status


def test_a_failed_run_says_why_and_how_to_go_on(home: Home, run: Run) -> None:
    write_json(run.folder / "status.json", {"status": "FAILED", "reason": "round 3: 1 of 2 sites"})
    with pytest.raises(RunFailed, match=rf"round 3: 1 of 2 sites; .*modaltune-server resume {run.name}$") as caught:
        rounds_of(home, run)
    assert caught.value.exit_code == 4


def test_a_run_is_not_waited_for_when_nobody_works_on_it(home: Home, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_RESTART_SECONDS", 0.0)
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0.01)
    with pytest.raises(RunFailed, match=r"SuperLink does not answer.*resume"):
        rounds_of(home, run)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_that_a_full_disk_ended_still_says_how_to_go_on(
    home: Home, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Link:
        def run(self, _: int) -> FlowerRun:
            return FlowerRun(finished=True, known=True, outcome="failed")

        def log(self, _: int) -> str:
            return "OSError"

    monkeypatch.setattr(runs, "connected", lambda _: nullcontext(Link()))
    monkeypatch.setattr(runs, "write_text", full)
    monkeypatch.setattr(runs, "_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0.01)
    with pytest.raises(RunFailed, match=rf"No space left on device\); go on with: modaltune-server resume {run.name}"):
        rounds_of(home, run)


def test_a_log_that_a_full_disk_does_not_take_hides_no_reason(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = RunJournal(home, "first")
    monkeypatch.setattr(AuditLog, "append", full)
    with pytest.raises(RunFailed, match=r"^the reason$"), journal.until_the_end():
        raise RunFailed("the reason")


def test_a_label_query_that_a_full_disk_ends_is_one_line(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inquiry, "_ask_sites", full)
    monkeypatch.setattr("server.rounds.write_json", full)
    grid: Any = None
    query: Any = None
    with pytest.raises(RunFailed, match=rf"^{tmp_path}: No space left.*own disk.* and ask again$"):
        Inquiry(grid, tiny_study, tmp_path / "model", tmp_path).ask(query)


class Flower:
    """A SuperLink's runs: the folder that each writes into."""

    def __init__(self) -> None:
        self.folders: dict[int, str] = {}
        self.kills = False

    def start(self, bundle: object, config: Mapping[str, str]) -> int:
        number = len(self.folders) + 77
        self.folders[number] = config["out"]
        if self.kills:
            raise Killed
        return number

    def runs_into(self, folder: Path) -> list[int]:
        return [number for number, out in self.folders.items() if out == str(folder)]

    def run(self, _: int) -> FlowerRun:
        return FlowerRun(finished=False, known=True, outcome="")


class Killed(BaseException):
    pass


def test_a_run_whose_submission_was_killed_is_found_again_in_flower(
    home: Home, tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Flower()
    link.kills = True
    for name in ("alpha", "beta"):
        write_text(tmp_path / f"{name}.json", tiny_study.to_json())
    monkeypatch.setattr(runs, "all_runs", lambda home: [run for run in all_runs(home) if run.name in ("alpha", "beta")])
    monkeypatch.setattr(runs, "admitted_nodes", lambda home: dict.fromkeys(tiny_study.roster, 1))
    monkeypatch.setattr(runs, "connected", lambda _: nullcontext(link))
    with pytest.raises(Killed):
        start_run(home, tmp_path / "alpha.json", "alpha")
    link.kills = False
    with pytest.raises(FederationError, match="run alpha is going on"):
        start_run(home, tmp_path / "beta.json", "beta")
    assert [entry["flower"] for entry in find_run(home, "alpha").submissions] == [77]
    written = [json.loads(line) for line in home.audit.read_text().splitlines()]
    told = [(line["event"], line["facts"]["flower"]) for line in written if line["facts"].get("run") == "alpha"]
    assert told == [("run-started", "77")]
    link.folders[77] = "elsewhere"
    write_json(
        home.runs / "alpha" / "run.json", {"study": "", "submissions": [{"flower": None, "bundle": "", "time": ""}]}
    )
    with pytest.raises(ConfigError, match="run alpha is not going on"):
        cancel_run(home, "alpha")
    assert [entry["flower"] for entry in resume_run(home, "alpha").submissions] == [78]
    shutil.rmtree(home.runs / "alpha")


def test_a_damaged_run_is_one_line_with_its_file(home: Home, run: Run) -> None:
    path = run.folder / "run.json"
    path.write_text(path.read_text()[:30])
    with pytest.raises(ConfigError, match=r"run\.json: damaged; put it back from a backup"):
        find_run(home, run.name)
    shutil.rmtree(run.folder)


def test_half_a_line_of_the_round_log_does_not_count(run: Run) -> None:
    (run.folder / "rounds.jsonl").write_text('{"round": 1}\n{"round"')
    assert run.rounds() == [{"round": 1}]


def test_a_study_whose_sites_are_not_admitted_is_not_started(home: Home, tmp_path: Path) -> None:
    write_study(tmp_path / "study.toml", "blank", ["H1", "H2"], "small", 32, None)
    with pytest.raises(ConfigError, match="quorum 2 cannot be met, not admitted: H1, H2"):
        start_run(home, tmp_path / "study.toml", "early")
    assert not (home.runs / "early").exists()


@pytest.mark.parametrize("name", ["../out", ".hidden", "a b", "a/b"])
def test_a_run_name_is_no_path(
    home: Home, tiny_study: Study, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "study.json", tiny_study.to_json())
    monkeypatch.setattr(runs, "admitted_nodes", lambda home: dict.fromkeys(tiny_study.roster, 1))
    with pytest.raises(ConfigError, match="run name"):
        start_run(home, tmp_path / "study.json", name)


def test_a_finished_run_is_not_resumed(home: Home, run: Run) -> None:
    (run.folder / "DONE").touch()
    with pytest.raises(ConfigError, match="is finished"):
        resume_run(home, run.name)


def test_an_unknown_run_names_the_known_ones(home: Home, run: Run) -> None:
    assert run in all_runs(home)
    with pytest.raises(ConfigError, match=rf"no run 'other'.*{run.name}"):
        find_run(home, "other")


@pytest.mark.parametrize("cohort", ["blank", "brca", "gbmlgg"])
def test_a_new_study_is_valid_as_it_is_written(tmp_path: Path, cohort: str) -> None:
    path = tmp_path / "study.toml"
    study = write_study(path, cohort, ["H1", "H2"], "small", 64, None)
    assert study == Study.load(path)
    assert (study.roster, study.quorum, study.slides.in_width) == (("H1", "H2"), 2, 64)
    with pytest.raises(ConfigError, match="not overwritten"):
        write_study(path, cohort, ["H1"], "small", 64, None)


def test_an_unknown_cohort_or_encoder_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"known in labels/: .*brca"):
        write_study(tmp_path / "study.toml", "heart", ["H1"], "small", 64, None)
    with pytest.raises(ConfigError, match="choose from small, longnet, titan"):
        write_study(tmp_path / "study.toml", "brca", ["H1"], "large", 64, None)
    assert not (tmp_path / "study.toml").exists()


def test_a_run_that_has_ended_is_not_cancelled(home: Home, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FederationError, match="SuperLink does not answer"):
        cancel_run(home, run.name)
    monkeypatch.setattr(runs, "connected", lambda _: nullcontext(None))
    write_json(run.folder / "status.json", {"status": "FAILED", "reason": "round 3: 1 of 2 sites"})
    with pytest.raises(ConfigError, match=f"run {run.name} is not going on"):
        cancel_run(home, run.name)
    assert run.status["reason"] == "round 3: 1 of 2 sites"

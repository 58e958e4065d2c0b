"""Commands as people use them: what they print, which exit code they give, what they leave on disk."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import client.cli
import modaltune.cli
import server.cli
import simulation.cli
from modaltune import __version__
from modaltune.errors import ConfigError
from modaltune.federation.study import Study
from tests.integration.helpers import Ran, assert_one_line, only_json, run_script
from tests.server.run_folder import metrics_rows, write_run

pytestmark = pytest.mark.integration
Command = Callable[..., Ran]
CONTRACT = {"study.json", "preprocessing.json", "rounds.jsonl", "metrics.json", "model", "report.html", "DONE"}
BESIDES = {"summary.json", "status.json"}
ONLY_SIMULATED = {"predictions.parquet", "embeddings.parquet", "gene_sets.parquet", "comparisons.json"}
ROW = {"method", "task", "metric", "hospital", "value", "low", "high", "n", "seed"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs" / "run"


DEMO_MISTAKES = {
    "--tasks H9=diagnosis": "unknown hospital 'H9'; choose from H1, H2, H3, H4, H5",
    "--tasks H1=grading": "unknown task 'grading'; choose from diagnosis, stage, survival",
    "--tasks H1": "--tasks 'H1': expected HOSPITAL=NAME[,NAME]",
    "--tasks =stage": "--tasks '=stage': expected HOSPITAL=NAME[,NAME]",
    "--tasks H1=": "--tasks 'H1=': expected HOSPITAL=NAME[,NAME]",
    "--tasks H1=stage --tasks H1=diagnosis": "--tasks names H1 twice",
    "--without H2=genes": "unknown modality 'genes'; choose from expression, slides",
    "--without H9=slides": "unknown hospital 'H9'",
    "--without H2": "--without 'H2': expected HOSPITAL=NAME[,NAME]",
    "--without H2=slides,expression": "hospital H2 is left without a modality",
    "--seeds 0,one": "--seeds '0,one': expected whole numbers separated by commas",
    "--seeds 0,,1": "--seeds '0,,1': expected whole numbers",
    "--seeds 1,1": "--seeds '1,1': expected different numbers",
    "--seeds -1": "--seeds '-1': expected different numbers from 0 upwards",
    "--seed -1": "Invalid value for '--seed': -1 is not in the range",
    "--seed one": "Invalid value for '--seed': 'one' is not",
    "--rounds 0": "Invalid value for '--rounds': 0 is not in the range",
    "--methods oracle": "--methods: unknown 'oracle'; choose from",
    "--set rounds=3": "--set 'rounds=3': expected TABLE.KEY=VALUE",
    "--set training.depth=3": "--set: [training] unknown key 'depth'; known keys: objective, temperature, rounds,",
    "--set training.rounds=many": "--set: [training] rounds: Input should be a valid integer",
    "--set slides.in_width=3": "slides.in_width follows from the site folders",
    "--set slides.colour=red": "--set: [slides] unknown key 'colour'; known keys: encoder,",
    "--privacy high": "--privacy",
    "--json --rounds": "--rounds",
    "now": "unexpected extra argument",
}


@pytest.mark.parametrize("arguments", DEMO_MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments: str, command: Command, out: Path) -> None:
    ran = command(simulation.cli.main, "demo", *arguments.split(), "--json", "--out", out)
    assert DEMO_MISTAKES[arguments] in assert_one_line(ran)
    assert list(out.parent.iterdir()) == []


def test_a_simulation_prints_its_notes_but_for_those_that_it_began_with(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(out, summary={"notes": ["Said at the start.", "Found [on] the way."]})
    simulation.cli._show(out, metrics_rows(), ["Said at the start."])
    said = capsys.readouterr().err
    assert "Found [on] the way." in said
    assert "Said at the start." not in said


TCGA_MISTAKES = {
    "--data DATA --cohort LUAD": "unknown cohort 'LUAD'; DATA has BLCA",
    "--data DATA/nowhere --cohort BLCA": "DATA/nowhere: no such folder; expected tables laid out as described in",
    "--data DATA/BLCA --cohort BLCA": "DATA/BLCA: no COHORT/clinical.parquet in it; expected tables",
    "--cohort BLCA": "Missing option '--data'",
    "--data DATA": "Missing option '--cohort'",
    "--data DATA --cohort BLCA --hospitals H7": "unknown hospital 'H7'; choose from H1, H2",
    "--data DATA --cohort BLCA --hospitals H1,": "unknown hospital ''; choose from H1, H2",
    "--data DATA --cohort BLCA --hospitals H1,H1": "--hospitals 'H1,H1': name each hospital once",
    "--data DATA --cohort BLCA --tasks H9=stage": "unknown hospital 'H9'; choose from H1, H2",
    "--data DATA --cohort BLCA --hospitals H1 --tasks H2=stage": "unknown hospital 'H2'; choose from H1",
    "--data DATA --cohort BLCA --tasks H1=grade": "unknown task 'grade'; choose from diagnosis, stage, survival",
    "--data DATA --cohort BLCA --tasks disjoint": "disjoint tasks need hospitals H1 to H4; H3 is absent",
    "--data DATA --cohort BLCA --without H1=image": "unknown modality 'image'; choose from expression, slides",
    "--data DATA --cohort BLCA --without H1=expression": "hospital H1 is left without a usable case",
    "--data DATA --cohort BLCA": "DATA: neither pathways.parquet nor pathways.gmt, and models read expression by gene",
    "--data DATA --cohort BLCA --seeds x": "--seeds 'x': expected whole numbers",
}


@pytest.mark.parametrize("arguments", TCGA_MISTAKES)
def test_a_mistake_with_a_cohort_is_one_line_and_leaves_nothing(
    arguments: str, command: Command, tables: Path, out: Path
) -> None:
    given = arguments.replace("DATA", str(tables)).split(" ")
    ran = command(simulation.cli.main, "tcga", *given, "--out", out)
    assert TCGA_MISTAKES[arguments].replace("DATA", str(tables)) in assert_one_line(ran)
    assert list(out.parent.iterdir()) == []


def test_gene_sets_that_match_no_gene_are_named_by_their_own_file(command: Command, tables: Path, out: Path) -> None:
    data = shutil.copytree(tables, out.parent / "data")
    (data / "pathways.gmt").write_text("SET\t\tENSG01\tENSG02\tENSG03\n")
    for kind in ("tcga", "build tcga"):
        ran = command(simulation.cli.main, *kind.split(), "--data", data, "--cohort", "BLCA", "--out", out)
        assert f"{data / 'pathways.gmt'}: no gene set has 3 genes of the expression table" in assert_one_line(ran)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("synthetic --tasks H9=stage", "unknown hospital 'H9'"),
        ("synthetic --without H1=genes", "unknown modality 'genes'"),
        ("lung", "unknown cohort kind 'lung'; choose synthetic or tcga"),
        ("tcga", "build tcga needs --data DIR and --cohort NAME"),
        ("tcga --data nowhere --cohort BLCA", "nowhere: no such folder"),
    ],
)
def test_a_mistake_in_building_site_folders_leaves_nothing(
    arguments: str, message: str, command: Command, out: Path
) -> None:
    ran = command(simulation.cli.main, "build", *arguments.split(), "--out", out)
    assert message in assert_one_line(ran)
    assert list(out.parent.iterdir()) == []


def test_building_says_what_was_left_out(command: Command, tables: Path, out: Path) -> None:
    odd = shutil.copytree(tables, out.parent / "odd")
    path = odd / "BLCA" / "clinical.parquet"
    clinical = pd.read_parquet(path)
    clinical.loc[clinical.index[:3], "os_months"] = -1.0
    clinical.to_parquet(path)
    said = "3 cases: kept without survival because follow-up is negative."
    ran = command(simulation.cli.main, "build", "tcga", "--data", odd, "--cohort", "BLCA", "--out", out, "--json")
    assert (ran.code, said in ran.err) == (0, True), ran.err
    assert [Path(folder).name for folder in json.loads(ran.out)["sites"]] == ["H1", "H2"]


@pytest.mark.parametrize("main", [modaltune.cli.main, server.cli.main, client.cli.main, simulation.cli.main])
def test_every_program_tells_its_version(main: Callable[[], None], command: Command) -> None:
    ran = command(main, "--version")
    assert (ran.code, ran.out, ran.err) == (0, f"modaltune-federated {__version__}\n", "")


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (modaltune.cli.main, ("evaluate", "--fast")),
        (modaltune.cli.main, ("bench", "everything")),
        (server.cli.main, ("study", "check")),
        (server.cli.main, ("report", "--pdf")),
        (client.cli.main, ("check", "--now")),
        (client.cli.main, ("chekc",)),
        (simulation.cli.main, ("tcag",)),
    ],
)
def test_a_wrong_word_names_the_command_that_helps(
    main: Callable[[], None], arguments: tuple[str, ...], command: Command
) -> None:
    assert "--help'." in assert_one_line(command(main, *arguments))


@pytest.mark.parametrize("main", [modaltune.cli.main, server.cli.main, client.cli.main, simulation.cli.main])
def test_a_command_alone_shows_its_help(main: Callable[[], None], command: Command) -> None:
    ran = command(main)
    assert ran.code == 2
    assert "Usage" in ran.out + ran.err
    ran = command(main, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "Usage" in ran.out


def test_scripts_say_the_same_as_processes(tmp_path: Path) -> None:
    error = assert_one_line(run_script("modaltune-simulate", "tcga", "--data", tmp_path / "x", "--cohort", "BLCA"))
    assert f"{tmp_path}/x: no such folder" in error
    assert "--colour" in assert_one_line(run_script("modaltune-client", "check", "--colour", "red"))


def test_a_traceback_appears_when_asked_for(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["modaltune-server", "study", "digest", str(tmp_path / "no.toml"), "--debug"])
    level = logging.getLogger("modaltune").level
    with pytest.raises(ConfigError, match="no such study file"):
        server.cli.main()
    logging.getLogger("modaltune").setLevel(level)


def test_a_failure_that_nobody_foresaw_is_one_line_without_its_own_text(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise ZeroDivisionError("TCGA-AA-1234")

    monkeypatch.setattr(Study, "load", fails)
    arguments = ("study", "digest", str(tmp_path / "study.toml"))
    error = assert_one_line(command(server.cli.main, *arguments))
    assert "unexpected failure (ZeroDivisionError in server.cli); run again with --debug" in error
    assert "TCGA" not in error
    monkeypatch.setattr("sys.argv", ["modaltune-server", *arguments, "--debug"])
    level = logging.getLogger("modaltune").level
    with pytest.raises(ZeroDivisionError):
        server.cli.main()
    logging.getLogger("modaltune").setLevel(level)


@pytest.mark.parametrize("content", ["a file", "other data in it"])
def test_an_out_that_is_no_run_is_left_alone(content: str, command: Command, out: Path) -> None:
    if content == "a file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
    ran = command(simulation.cli.main, "demo", "--out", out)
    assert f"{out}: exists and is not a finished run; choose another --out or remove it" in assert_one_line(ran)
    kept = out if out.is_file() else out / "thesis.tex"
    assert kept.read_text() == "precious"
    assert [path.name for path in out.parent.iterdir()] == ["run"]


def test_the_current_folder_is_no_run_folder(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ".: give the run a folder of its own" in assert_one_line(command(simulation.cli.main, "demo", "--out", "."))


def test_a_failure_after_training_began_leaves_nothing(
    command: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("the federation stopped")

    monkeypatch.setattr("simulation.experiment.run_federation", fail)
    ran = command(simulation.cli.main, "demo", "--out", out)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == "error: the federation stopped"
    assert list(out.parent.iterdir()) == []


def test_the_demo_prints_one_document_and_writes_the_whole_run_folder(demo: tuple[Path, Ran]) -> None:
    out, ran = demo
    assert (ran.code, "Traceback" in ran.err) == (0, False)
    document = only_json(ran.out)
    assert set(document) == {"run", "metrics"}
    assert document["run"] == str(out)
    assert document["metrics"] == json.loads((out / "metrics.json").read_text())
    assert {row["method"] for row in document["metrics"]} == {"federated", "linear"}
    assert all(set(row) == ROW for row in document["metrics"])
    assert {path.name for path in out.iterdir()} == CONTRACT | BESIDES | ONLY_SIMULATED
    assert [path.name for path in out.parent.iterdir()] == ["run"]
    assert all(path.stat().st_size for path in out.rglob("*") if path.is_file())
    newest = max(path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "DONE")
    assert (out / "DONE").stat().st_mtime_ns >= newest


def test_the_demo_says_how_it_goes_on_standard_error(demo: tuple[Path, Ran]) -> None:
    lines = demo[1].err.splitlines()
    steps = ["starting", "capability", "preprocess", "round", "evaluate"]
    assert [line.split()[0] for line in lines[2:7]] == steps
    assert lines[-1].startswith(f"report: {demo[0] / 'report.html'}")


def test_the_study_of_a_run_can_be_checked_and_named(demo: tuple[Path, Ran], command: Command) -> None:
    file = demo[0] / "study.json"
    digest = json.loads((demo[0] / "summary.json").read_text())["digest"]
    assert only_json(command(server.cli.main, "study", "digest", file, "--json").out) == {"digest": digest}
    assert command(server.cli.main, "study", "digest", file).out == f"{digest}\n"
    checked = only_json(command(server.cli.main, "study", "check", file, "--json").out)
    assert (checked["name"], checked["digest"], checked["rounds"]) == ("demo", digest, 1)
    assert checked["tasks"] == {"diagnosis": "nominal", "stage": "ordinal", "survival": "survival"}
    assert checked["roster"] == ["H1", "H2", "H3", "H4", "H5"]


def test_a_report_can_be_written_anew(demo: tuple[Path, Ran], command: Command, tmp_path: Path) -> None:
    run = shutil.copytree(demo[0], tmp_path / "run")
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert only_json(command(server.cli.main, "report", run, "--json").out) == {"report": str(run / "report.html")}
    assert (run / "report.html").read_bytes() == before
    (run / "metrics.json").write_text("[{")
    assert "metrics.json" in assert_one_line(command(server.cli.main, "report", run))
    assert "nowhere" in assert_one_line(command(server.cli.main, "report", tmp_path / "nowhere"))


def test_site_folders_can_be_built_and_are_named_in_one_document(command: Command, tmp_path: Path) -> None:
    ran = command(simulation.cli.main, "build", "synthetic", "--out", tmp_path / "sites", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert only_json(ran.out) == {"sites": [str(tmp_path / "sites" / f"H{number}") for number in range(1, 6)]}
    for number in range(1, 6):
        assert {"site.toml", "cases.parquet"} <= {path.name for path in (tmp_path / "sites" / f"H{number}").iterdir()}


def test_a_hospital_sees_what_would_leave(
    study: Study, hospitals: dict[str, Path], command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "study.json"
    file.write_text(study.to_json())
    ran = command(client.cli.main, "check", file, "--site", hospitals["H1"], "--json")
    leaves = only_json(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert leaves["digest"] == study.digest
    assert leaves["capability"]["site"] == "H1"
    assert leaves["counts below"] == 1
    assert leaves["statistics"]["clinical.age.sum"] == [1]
    ran = command(client.cli.main, "check", file, "--site", hospitals["H1"])
    assert (ran.code, ran.out) == (0, "")
    assert "frozen weights" in ran.err

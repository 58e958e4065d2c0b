"""Commands as people use them: what they print, which exit code they give, what they leave on disk."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import client.cli
import modaltune.cli
import server.cli
import simulation.cli
from modaltune.data.bags import read_bag, write_bag
from modaltune.data.cohort import Bag
from modaltune.errors import CaseTableError, ConfigError, FeatureFileError
from modaltune.federation.study import Study
from simulation.runs import run_folder
from simulation.study import read_sites
from simulation.tcga import build_tcga
from tests.integration.helpers import Finished, Ran, run_script, vocabulary

pytestmark = pytest.mark.integration
Command = Callable[..., Ran]
CONTRACT = {"study.json", "preprocessing.json", "rounds.jsonl", "metrics.json", "model", "report.html", "DONE"}
BESIDES = {"summary.json", "status.json"}
ONLY_SIMULATED = {"predictions.parquet", "embeddings.parquet", "comparisons.json"}
ROW = {"method", "task", "metric", "hospital", "value", "low", "high", "n", "seed"}


def assert_one_line(ran: Ran, code: int = 2) -> str:
    """The one line of an error."""
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err
    return ran.err


def only_json(text: str) -> Any:
    """The one JSON document on standard output, without NaN or infinity."""
    assert text.count("\n") == 1
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs" / "run"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented tables of one cohort, laid out as docs/data.md says."""
    folder, draw = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    ids = [f"TCGA-XX-{number:04d}" for number in range(40)]
    clinical = {
        "case_id": ids,
        "hospital": ["H1"] * 20 + ["H2"] * 20,
        "primary_class": draw.integers(0, 2, 40),
        "stage_num": draw.integers(1, 5, 40),
        "os_months": draw.exponential(30, 40) + 1,
        "os_event": draw.integers(0, 2, 40),
        "age": draw.normal(60, 5, 40),
        "sex": ["female", "male"] * 20,
    }
    (folder / "BLCA").mkdir()
    pd.DataFrame(clinical).to_parquet(folder / "BLCA" / "clinical.parquet")
    genes = pd.DataFrame(draw.normal(size=(40, 4)), columns=["TP53", "KRAS", "EGFR", "RB1"])
    genes.insert(0, "case_id", ids)
    genes.to_parquet(folder / "BLCA" / "rna.parquet")
    return folder


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
    "--set training.depth=3": "training.depth: Extra inputs are not permitted",
    "--set training.rounds=many": "training.rounds: Input should be a valid integer",
    "--set slides.in_width=3": "slides.in_width follows from the site folders",
    "--set slides.colour=red": "colour: Extra inputs are not permitted",
    "--privacy high": "--privacy",
    "--json --rounds": "--rounds",
    "now": "unexpected extra argument",
}


@pytest.mark.parametrize("arguments", DEMO_MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments: str, command: Command, out: Path) -> None:
    ran = command(simulation.cli.main, "demo", *arguments.split(), "--json", "--out", out)
    assert DEMO_MISTAKES[arguments] in assert_one_line(ran)
    assert list(out.parent.iterdir()) == []


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


def test_a_finished_run_is_replaced_and_survives_a_failure(out: Path) -> None:
    with run_folder(out) as folder:
        (folder / "first").write_text("")
        assert not out.exists()
    assert {path.name for path in out.iterdir()} == {"first", "DONE"}

    def fail() -> None:
        with run_folder(out) as folder:
            (folder / "second").write_text("")
            raise ConfigError("too late")

    with pytest.raises(ConfigError):
        fail()
    assert {path.name for path in out.iterdir()} == {"first", "DONE"}
    with run_folder(out) as folder:
        (folder / "third").write_text("")
    assert {path.name for path in out.iterdir()} == {"third", "DONE"}
    assert [path.name for path in out.parent.iterdir()] == ["run"]


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
    assert [line.split()[0] for line in lines[2:6]] == ["capability", "preprocess", "round", "evaluate"]
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


def edit_cases(folder: Path, **columns: Any) -> None:
    table = pd.read_parquet(folder / "cases.parquet")
    table.assign(**columns).to_parquet(folder / "cases.parquet", index=False)


def empty_hospital(folder: Path) -> None:
    pd.read_parquet(folder / "cases.parquet").head(0).to_parquet(folder / "cases.parquet", index=False)


def no_usable_case(folder: Path) -> None:
    kept = [line for line in (folder / "site.toml").read_text().splitlines() if line.split(" ")[0] not in MODALITIES]
    (folder / "site.toml").write_text("\n".join(kept))


def unknown_label(folder: Path) -> None:
    edit_cases(folder, diagnosis="teratoma")


def bag_of(folder: Path) -> tuple[Path, Bag]:
    path = min((folder / "features").glob("*.h5"))
    return path, read_bag(path)


def not_a_number(folder: Path) -> None:
    path, bag = bag_of(folder)
    bag.features[1, 2] = np.nan
    write_bag(path, bag, encoder="test")


def truncated_features(folder: Path) -> None:
    path, _ = bag_of(folder)
    path.write_bytes(path.read_bytes()[:600])


def narrower(folder: Path) -> None:
    for path in (folder / "features").glob("*.h5"):
        bag = read_bag(path)
        changed = Bag(features=bag.features[:, :20], coords=bag.coords, patch_size_level0=bag.patch_size_level0)
        write_bag(path, changed, encoder="test")


def other_name(folder: Path) -> None:
    settings = folder / "site.toml"
    settings.write_text(settings.read_text().replace('"H1"', '"Elsewhere"'))


def unknown_key(folder: Path) -> None:
    settings = folder / "site.toml"
    settings.write_text('colour = "red"\n' + settings.read_text())


MODALITIES = ("expression", "slides", "features")
DAMAGES: dict[Callable[[Path], Any], str] = {
    empty_hospital: "site H1: cases.parquet: the table has no row",
    no_usable_case: "site H1: none of 26 cases has a slide or a row of expression",
    unknown_label: "site H1: task 'diagnosis' has labels outside the vocabulary such as 'teratoma' in 26 rows",
    not_a_number: "site H1: slides.csv, file of row 1: 1 of",
    truncated_features: "site H1: slides.csv, file of row 1: truncated or not an HDF5 file",
    narrower: "site H1: bags have 20 features per patch but study small needs 32",
    other_name: "site Elsewhere is not in the roster of study small",
    unknown_key: "unknown key 'colour'",
    shutil.rmtree: "no such site folder",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_site_is_one_line_that_names_no_patient(
    damage: Callable[[Path], Any], study: Study, hospitals: dict[str, Path], command: Command, tmp_path: Path
) -> None:
    file, folder = tmp_path / "study.json", shutil.copytree(hospitals["H1"], tmp_path / "H1")
    file.write_text(study.to_json())
    damage(folder)
    line = assert_one_line(command(client.cli.main, "check", file, "--site", folder, "--json"))
    assert DAMAGES[damage] in line
    assert "SYN-H1" not in line


def test_hospitals_with_other_features_are_named_before_a_study_is_made(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(hospitals["H2"], tmp_path / "H2")
    narrower(folder)
    with pytest.raises(FeatureFileError, match="site H2: 20 features per patch, but site H1 has 32"):
        read_sites([hospitals["H1"], folder], vocabulary(), "salt")


def test_two_hospitals_cannot_claim_one_patient(hospitals: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(hospitals["H4"], tmp_path / "H4")
    ids = pd.read_parquet(folder / "cases.parquet")["case_id"].tolist()
    stolen = pd.read_parquet(hospitals["H3"] / "cases.parquet")["case_id"][0]
    edit_cases(folder, case_id=[*ids[:5], stolen, *ids[6:]])
    slides = pd.read_csv(folder / "slides.csv")
    slides[slides["case_id"] != ids[5]].to_csv(folder / "slides.csv", index=False)
    expression = pd.read_parquet(hospitals["H2"] / "expression.parquet").head(1).assign(case_id=stolen)
    expression.to_parquet(folder / "expression.parquet", index=False)
    settings = folder / "site.toml"
    settings.write_text(settings.read_text().replace("[paths]", '[paths]\nexpression = "expression.parquet"'))
    with pytest.raises(CaseTableError, match=r"sites H3 and H4 both claim one patient \(row 6 of H4\)") as caught:
        read_sites([hospitals["H3"], folder], vocabulary(), "salt")
    assert "SYN" not in str(caught.value)


def test_one_name_for_two_folders_is_refused(hospitals: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="copy: site name H1 is taken by another folder"):
        read_sites([hospitals["H1"], shutil.copytree(hospitals["H1"], tmp_path / "copy")], vocabulary(), "salt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such study file"),
        ("{", "Invalid JSON"),
        ("{}", "Field required"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_a_broken_study_file_is_one_line(
    content: str | bytes | None, message: str, command: Command, tmp_path: Path, hospitals: dict[str, Path]
) -> None:
    file = tmp_path / "study.json"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    for main, arguments in (
        (server.cli.main, ("study", "check", file)),
        (client.cli.main, ("check", file, "--site", hospitals["H1"])),
    ):
        assert message in assert_one_line(command(main, *arguments))


@pytest.mark.parametrize("content", ["name = ", "seed = nan", "seed = 2020-01-01", "name = 3\nseed = 1"])
def test_a_broken_study_in_toml_is_one_line(content: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(content)
    assert "study.toml: " in assert_one_line(command(server.cli.main, "study", "check", tmp_path / "study.toml"))


def cut(name: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        (model / name).write_bytes((model / name).read_bytes()[:-100])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def swap_weights(model: Path) -> None:
    shutil.copy(model / "label_targets.safetensors", model / "weights.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no study.json; expected the model/ folder of a finished run"),
        (remove("preprocessing.json"), "no preprocessing.json; expected the model/ folder"),
        (remove("weights.safetensors"), "weights.safetensors: no such weights file"),
        (remove("label_targets.safetensors"), "label_targets.safetensors: no such weights file"),
        (cut("weights.safetensors"), "weights.safetensors: not a complete safetensors file"),
        (cut("label_targets.safetensors"), "label_targets.safetensors: not a complete safetensors file"),
        (cut("study.json"), "study.json: "),
        (cut("preprocessing.json"), "preprocessing.json is not valid"),
        (swap_weights, "weights do not fit the study"),
    ],
    ids=[
        "folder",
        "no-preprocessing",
        "no-weights",
        "no-targets",
        "weights",
        "targets",
        "study",
        "preprocessing",
        "other",
    ],
)
def test_a_damaged_model_is_one_line(
    damage: Callable[[Path], None], message: str, federation: Finished, command: Command, tables: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(federation.folder / "model", tmp_path / "model")
    damage(model)
    ran = command(modaltune.cli.main, "evaluate", "--model", model, "--data", tables, "--cohort", "BLCA", "--json")
    assert message in assert_one_line(ran)


def test_a_model_of_other_cases_is_refused(federation: Finished, command: Command, tables: Path) -> None:
    model = federation.folder / "model"
    for cohort, message in (("BLCA", "none of the model's"), ("LUAD", "unknown cohort 'LUAD'")):
        ran = command(modaltune.cli.main, "evaluate", "--model", model, "--data", tables, "--cohort", cohort)
        assert message in assert_one_line(ran)


def test_invented_tables_become_site_folders(tables: Path, tmp_path: Path) -> None:
    """The tables behind the mistakes above are sound: what fails there fails for the mistake."""
    folders = build_tcga(tables, "BLCA", tmp_path)
    assert [folder.name for folder in folders] == ["H1", "H2"]

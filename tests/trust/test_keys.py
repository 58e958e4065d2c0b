from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from hypothesis import given
from hypothesis import strategies as st

from modaltune.errors import TrustError
from modaltune.trust.keys import (
    SigningKey,
    create_node_key,
    fingerprint,
    read_private,
    read_public,
    verify,
    write_private,
)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("keys") / "audit.key")


def test_a_key_that_is_read_back_signs_the_same(tmp_path: Path) -> None:
    made = SigningKey.create(tmp_path / "keys" / "audit.key")
    read = SigningKey.load(tmp_path / "keys" / "audit.key")
    assert read.sign(b"content") == made.sign(b"content")
    assert read.public_pem == made.public_pem
    verify(made.public_pem, b"content", read.sign(b"content"))


def test_private_files_are_for_their_owner_only_also_with_a_generous_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        SigningKey.create(tmp_path / "keys" / "audit.key")
        create_node_key(tmp_path / "keys" / "node")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for name in ("audit.key", "node"):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600


@given(data=st.binary(max_size=64), other=st.binary(max_size=64), bit=st.integers(0, 511))
def test_a_signature_fits_one_content_and_no_bit_of_it_may_change(
    key: SigningKey, data: bytes, other: bytes, bit: int
) -> None:
    signature = key.sign(data)
    verify(key.public_pem, data, signature)
    flipped = bytearray(signature)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TrustError, match="does not belong"):
        verify(key.public_pem, data, bytes(flipped))
    if other != data:
        with pytest.raises(TrustError, match="does not belong"):
            verify(key.public_pem, other, signature)


def test_a_signature_of_somebody_else_is_refused(key: SigningKey, tmp_path: Path) -> None:
    other = SigningKey.create(tmp_path / "other.key")
    with pytest.raises(TrustError, match="does not belong"):
        verify(key.public_pem, b"content", other.sign(b"content"))


@pytest.mark.parametrize("make", [SigningKey.create, create_node_key])
def test_a_key_is_never_replaced(make: object, tmp_path: Path) -> None:
    make(tmp_path / "a.key")  # type: ignore[operator]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TrustError, match=r"a\.key: is there already and is not replaced"):
        make(tmp_path / "a.key")  # type: ignore[operator]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_key_that_others_can_use_is_refused_with_the_remedy(mode: int, tmp_path: Path) -> None:
    SigningKey.create(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(mode)
    with pytest.raises(TrustError, match=rf"mode {mode:04o}, expected 0600\); run: chmod 600 .*a\.key"):
        SigningKey.load(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o600)
    SigningKey.load(tmp_path / "a.key")


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_one_clear_error(content: bytes, tmp_path: Path) -> None:
    write_private(tmp_path / "a.key", content)
    with pytest.raises(TrustError, match=r"a\.key: not a signing key") as caught:
        SigningKey.load(tmp_path / "a.key")
    assert "\n" not in str(caught.value)


def test_a_node_key_is_no_signing_key(tmp_path: Path) -> None:
    public = create_node_key(tmp_path / "node")
    with pytest.raises(TrustError, match="not a signing key"):
        SigningKey.load(tmp_path / "node")
    with pytest.raises(TrustError, match="not an Ed25519 key"):
        verify(public, b"content", b"signature")


def test_an_absent_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"a\.key: no such private file"):
        read_private(tmp_path / "a.key")


def test_a_node_key_is_what_flower_reads(tmp_path: Path) -> None:
    """flower-supernode: load_ssh_private_key, an elliptic curve; `flwr supernode register`: load_ssh_public_key."""
    public = create_node_key(tmp_path / "node")
    private = load_ssh_private_key((tmp_path / "node").read_bytes(), None)
    registered = load_ssh_public_key((tmp_path / "node.pub").read_bytes())
    assert isinstance(private, EllipticCurvePrivateKey)
    assert isinstance(registered, EllipticCurvePublicKey)
    assert private.public_key() == registered
    assert registered.curve.name == "secp384r1"
    assert (tmp_path / "node.pub").read_text() == public


def test_a_fingerprint_is_the_one_that_ssh_keygen_prints(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen: install openssh-client")
    public = create_node_key(tmp_path / "node")
    printed = subprocess.run(
        ["ssh-keygen", "-l", "-f", tmp_path / "node.pub"], capture_output=True, text=True, check=True
    )
    assert fingerprint(public) in printed.stdout.split()


def test_both_forms_of_public_keys_have_a_fingerprint_and_other_texts_do_not(key: SigningKey) -> None:
    assert fingerprint(key.public_pem).startswith("SHA256:")
    for text in ("", "ssh-rsa AAAA", "-----BEGIN PUBLIC KEY-----", "ecdsa-sha2-nistp384 AAAA\n"):
        with pytest.raises(TrustError, match="not a public key"):
            fingerprint(text)


def test_a_public_key_is_read_back_and_nothing_else_is(key: SigningKey, tmp_path: Path) -> None:
    (tmp_path / "audit.pub").write_text(key.public_pem)
    assert read_public(tmp_path / "audit.pub") == key.public_pem
    for content in (b"", b"\xff", key.public_pem[:60].encode(), create_node_key(tmp_path / "node").encode()):
        (tmp_path / "node").unlink(missing_ok=True)
        (tmp_path / "wrong.pub").write_bytes(content)
        with pytest.raises(TrustError, match=r"wrong\.pub: not the public half of a signing key"):
            read_public(tmp_path / "wrong.pub")
    with pytest.raises(TrustError, match=r"absent\.pub: no such public key"):
        read_public(tmp_path / "absent.pub")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("modaltune.trust.keys.os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_private(tmp_path / "a.key", b"secret")
    assert list(tmp_path.iterdir()) == []

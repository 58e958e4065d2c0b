"""Private keys that stay where they were made, and what is checked with their public halves."""

from __future__ import annotations

import os
import stat
import tempfile
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)

from modaltune.errors import TrustError
from modaltune.storage import write_bytes


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 key that signs audit logs and releases; its file is PKCS#8 PEM with mode 0600."""

    _private: Ed25519PrivateKey

    @classmethod
    def create(cls, path: Path) -> SigningKey:
        """Make a key and write it; a file that is there is never replaced."""
        private = Ed25519PrivateKey.generate()
        write_private(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cls(private)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a key that only its owner can read."""
        data = read_private(path)
        try:
            private = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a passphrase
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise TrustError(f"{path}: not a signing key; expected an Ed25519 private key (PEM, no passphrase)")
        return cls(private)

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of the signature over ``data``; the same data gives the same signature."""
        return self._private.sign(data)

    @property
    def public_pem(self) -> str:
        """The public half: PEM text that may be given to anyone."""
        return self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def verify(public_pem: str, data: bytes, signature: bytes) -> None:
    """Raise :class:`TrustError` unless the owner of the public key has signed exactly this data."""
    key = _public_key(public_pem)
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError("the public key is not an Ed25519 key; use the one that the signing side gave out")
    try:
        key.verify(signature, data)
    except InvalidSignature:
        raise TrustError("the signature does not belong to this content and this public key") from None


def read_public(path: Path) -> str:
    """Read the public half of a signing key (PEM)."""
    try:
        text = path.read_bytes().decode()
        key = _public_key(text)
    except FileNotFoundError:
        raise TrustError(f"{path}: no such public key; ask its owner for it") from None
    except (UnicodeDecodeError, TrustError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError(f"{path}: not the public half of a signing key; expected an Ed25519 key (PEM)")
    return text


def create_node_key(path: Path) -> str:
    """Make a site's P-384 key for Flower: the private half in ``path``, the public half in ``path.pub``.

    Returns:
        The public half, one line in OpenSSH form.
    """
    if path.exists():
        raise _exists(path)
    private = generate_private_key(SECP384R1())
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
    write_bytes(path.with_name(f"{path.name}.pub"), public)  # first: a public half alone is in nobody's way
    write_private(path, private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return public.decode()


def fingerprint(public: str) -> str:
    """SHA-256 of a public key (PEM or OpenSSH) as ``ssh-keygen -l`` writes it: short enough to be read out."""
    return "SHA256:" + b64encode(ssh_key_fingerprint(_public_key(public), SHA256())).decode().rstrip("=")


def write_private(path: Path, data: bytes) -> None:
    """Write a secret that only its owner can read, completely or not at all; never over another."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(name, path)
    except FileExistsError:
        raise _exists(path) from None
    finally:
        Path(name).unlink(missing_ok=True)


def read_private(path: Path) -> bytes:
    """Read a secret, unless others could have read it too."""
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            if mode & 0o077:
                raise TrustError(
                    f"{path}: group or others can use this private file (mode {mode:04o}, expected 0600);"
                    f" run: chmod 600 {path}"
                )
            return stream.read()
    except FileNotFoundError:
        raise TrustError(f"{path}: no such private file; it is made on this machine by `init`") from None


def _public_key(text: str) -> Ed25519PublicKey | EllipticCurvePublicKey:
    load = load_pem_public_key if text.lstrip().startswith("-----") else load_ssh_public_key
    try:
        key = load(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
        raise TrustError(
            "not a public key; expected an Ed25519 or elliptic-curve key, PEM or one OpenSSH line (NAME.pub)"
        )
    return key


def _exists(path: Path) -> TrustError:
    return TrustError(f"{path}: is there already and is not replaced; move it away only if nothing uses it any more")

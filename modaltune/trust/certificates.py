"""A certificate authority of the study's own, and the TLS certificates that it issues for the coordinator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from modaltune.errors import CertificateError
from modaltune.storage import write_bytes
from modaltune.trust.keys import read_private, write_private

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_CLOCKS_BEHIND = timedelta(days=1)  # a site whose clock is behind must not refuse a new certificate
_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says about itself.

    Attributes:
        names: DNS names and addresses that it is valid for; none for an authority.
        not_after: end of its validity (UTC).
        sha256: fingerprint, as ``openssl x509 -fingerprint -sha256`` prints it but without colons.
    """

    subject: str
    names: tuple[str, ...]
    not_after: datetime
    sha256: str


def create_authority(folder: Path, name: str, days: int) -> Path:
    """Make ``ca.key`` and ``ca.crt`` in a folder; returns the certificate, which every site gets."""
    key = generate_private_key(SECP384R1())
    subject = _name(name)
    builder = _builder(subject, subject, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    return _write(folder, "ca", builder.sign(key, SHA384()), key)


def issue_server(authority: Path, folder: Path, names: Sequence[str], days: int) -> Path:
    """Make ``server.key`` and ``server.crt`` for some host names and addresses; returns the certificate.

    Args:
        authority: folder of :func:`create_authority`.
        folder: receives the two files.
        names: DNS names and IP addresses that clients connect to.
        days: validity; must end before the authority's own.
    """
    key = generate_private_key(SECP384R1())
    return _write(folder, "server", _server_certificate(authority, key, names, days), key)


def renew_server(authority: Path, folder: Path, days: int) -> Path:
    """Issue ``server.crt`` again, for the same names.

    The private key stays, so one atomic replacement of one file is the whole renewal: there is no moment at which
    key and certificate do not fit each other.
    """
    path = folder / "server.crt"
    names = certificate_facts(path).names
    write_bytes(path, _pem(_server_certificate(authority, _read_key(folder / "server.key"), names, days)))
    return path


def check_server(authority: Path, folder: Path) -> CertificateFacts:
    """Read the server's certificate and key, and whether they and the authority fit each other.

    Raises:
        CertificateError: a file is damaged or absent, or of another pair.
    """
    path = folder / "server.crt"
    issuer, certificate, key = _read_certificate(authority / "ca.crt"), _read_certificate(path), folder / "server.key"
    if certificate.public_key() != _read_key(key).public_key():
        raise CertificateError(f"{path}: does not belong to {key.name}; issue it anew: modaltune-server renew")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise CertificateError(
            f"{path}: not issued by the authority in {authority}; issue it anew: modaltune-server renew"
        ) from None
    return certificate_facts(path)


def certificate_facts(path: Path) -> CertificateFacts:
    """Read a certificate (PEM)."""
    certificate = _read_certificate(path)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    return CertificateFacts(
        subject=certificate.subject.rfc4514_string(),
        names=tuple(str(name.value) for name in names),
        not_after=certificate.not_valid_after_utc,
        sha256=certificate.fingerprint(SHA256()).hex(),
    )


def certificate_fingerprint(pem: str) -> str:
    """SHA-256 of a certificate, as ``openssl x509 -fingerprint -sha256`` prints it but without colons.

    Raises:
        CertificateError: it is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem.encode()).fingerprint(SHA256()).hex()
    except ValueError:
        raise CertificateError(
            "the authority is no certificate (PEM); ask the coordinator for the file again"
        ) from None


def _server_certificate(
    authority: Path, key: EllipticCurvePrivateKey, names: Sequence[str], days: int
) -> x509.Certificate:
    issuer, issuer_key = _read_certificate(authority / "ca.crt"), _read_key(authority / "ca.key")
    if issuer.public_key() != issuer_key.public_key():
        raise CertificateError(f"{authority}: ca.key does not belong to ca.crt; put the pair back from your backup")
    left = (issuer.not_valid_after_utc - datetime.now(UTC)).days
    if days > left:
        raise CertificateError(
            f"{authority / 'ca.crt'}: ends in {left} day(s), before a certificate of {days} days would;"
            " ask for fewer days, or make a new authority and give its ca.crt to every site"
        )
    builder = _builder(issuer.subject, _name("ModalTune coordinator"), key, days)
    builder = builder.add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage("digital_signature"), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return builder.add_extension(issuer_id, critical=False).sign(issuer_key, SHA384())


def _builder(issuer: x509.Name, subject: x509.Name, key: EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    if days < 1:
        raise CertificateError(f"a certificate is valid for at least 1 day, got {days}")
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_BEHIND)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    if not names:
        raise CertificateError("a server certificate needs at least one host name or IP address")
    return [_general_name(name) for name in dict.fromkeys(names)]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    if not _HOST.fullmatch(name):
        raise CertificateError(f"{name!r} is no host name or IP address; expected for instance study.hospital.org")
    return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    except ValueError:
        raise CertificateError(f"the name of an authority has 1 to 64 characters, got {len(common_name)}") from None


def _usage(*uses: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in uses for use in _USES})


def _write(folder: Path, stem: str, certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> Path:
    private, path = folder / f"{stem}.key", folder / f"{stem}.crt"
    if private.exists():
        raise CertificateError(f"{private}: is there already and is not replaced; renew its certificate instead")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bytes(path, _pem(certificate))  # first: a certificate without its key is in nobody's way
    write_private(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise CertificateError(f"{path}: no such certificate; `modaltune-server init` makes it") from None
    except ValueError:
        raise CertificateError(
            f"{path}: not a certificate; expected PEM text (BEGIN CERTIFICATE). Put it back from a backup; that of the"
            " server is issued anew by: modaltune-server renew"
        ) from None


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    data = read_private(path)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):  # TypeError: it has a passphrase
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise CertificateError(f"{path}: not the key of a certificate; expected an elliptic-curve key (PEM)")
    return key

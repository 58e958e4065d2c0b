from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from modaltune.errors import CertificateError, TrustError
from modaltune.trust.certificates import certificate_facts, create_authority, issue_server, renew_server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "ca"
    create_authority(folder, "Study of three hospitals", 3650)
    return folder


def handshake(authority: Path, tls: Path, name: str) -> set[str]:
    """One real TLS handshake, the client trusting this authority only; the names that the server showed."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tls / "server.crt", tls / "server.key")
    client = ssl.create_default_context(cafile=str(authority / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 and later do by default
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as secured:
            shown = secured.getpeercert() or {}
            return {str(value) for kind, value in shown["subjectAltName"]}
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", ["study.hospital.org", "localhost", "127.0.0.1", "::1"])
def test_clients_accept_every_name_of_the_certificate(name: str, authority: Path, tmp_path: Path) -> None:
    issue_server(authority, tmp_path / "tls", ["study.hospital.org", "localhost", "127.0.0.1", "::1"], 90)
    assert {"study.hospital.org", "localhost", "127.0.0.1"} < handshake(authority, tmp_path / "tls", name)


def test_clients_refuse_another_name_and_another_authority(authority: Path, tmp_path: Path) -> None:
    issue_server(authority, tmp_path / "tls", ["study.hospital.org"], 90)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(authority, tmp_path / "tls", "other.hospital.org")
    create_authority(tmp_path / "ca", "Study of three hospitals", 3650)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "ca", tmp_path / "tls", "study.hospital.org")


def test_facts_are_what_the_certificate_says(authority: Path, tmp_path: Path) -> None:
    path = issue_server(authority, tmp_path, ["study.hospital.org", "10.0.0.7", "study.hospital.org"], 90)
    facts = certificate_facts(path)
    assert facts.names == ("study.hospital.org", "10.0.0.7")
    assert abs(facts.not_after - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=1)
    assert certificate_facts(authority / "ca.crt").subject == "CN=Study of three hospitals"
    assert certificate_facts(authority / "ca.crt").names == ()
    pem = ssl.PEM_cert_to_DER_cert(path.read_text())
    assert facts.sha256 == hashlib.sha256(pem).hexdigest()


def test_the_server_certificate_cannot_issue_others(authority: Path, tmp_path: Path) -> None:
    server = x509.load_pem_x509_certificate(issue_server(authority, tmp_path, ["localhost"], 90).read_bytes())
    root = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)


def test_a_site_whose_clock_is_behind_accepts_a_new_certificate(authority: Path, tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(issue_server(authority, tmp_path, ["localhost"], 90).read_bytes())
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=10)


def test_a_renewed_certificate_has_the_names_the_key_and_a_later_end(authority: Path, tmp_path: Path) -> None:
    before = certificate_facts(issue_server(authority, tmp_path, ["localhost", "127.0.0.1"], 30))
    key = (tmp_path / "server.key").read_bytes()
    after = certificate_facts(renew_server(authority, tmp_path, 90))
    assert after.names == before.names
    assert after.not_after > before.not_after + timedelta(days=59)
    assert after.sha256 != before.sha256
    assert (tmp_path / "server.key").read_bytes() == key
    handshake(authority, tmp_path, "localhost")


def test_no_key_of_an_authority_or_a_server_is_replaced(authority: Path, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"ca\.key: is there already"):
        create_authority(authority, "another", 10)
    issue_server(authority, tmp_path, ["localhost"], 30)
    with pytest.raises(CertificateError, match=r"server\.key: is there already"):
        issue_server(authority, tmp_path, ["localhost"], 30)


@pytest.mark.parametrize(
    "name",
    [
        "https://study.hospital.org",
        "study.hospital.org:443",
        "",
        "a b",
        "-a.org",
        "x" * 64 + ".org",
        "kliniküm.de",
        "a..b",
    ],
)
def test_what_is_no_host_name_is_refused(name: str, authority: Path, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="is no host name or IP address"):
        issue_server(authority, tmp_path, [name], 30)
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_needs_names_days_and_an_authority_that_lasts(authority: Path, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="at least one host name"):
        issue_server(authority, tmp_path, [], 30)
    with pytest.raises(CertificateError, match="at least 1 day, got 0"):
        issue_server(authority, tmp_path, ["localhost"], 0)
    create_authority(tmp_path / "ca", "short", 10)
    with pytest.raises(CertificateError, match=r"ca\.crt: ends in 9 day\(s\).*ask for fewer days"):
        issue_server(tmp_path / "ca", tmp_path, ["localhost"], 30)
    with pytest.raises(CertificateError, match="1 to 64 characters, got 0"):
        create_authority(tmp_path / "other", "", 10)


def test_damaged_files_are_named(authority: Path, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"ca\.crt: no such certificate"):
        issue_server(tmp_path, tmp_path, ["localhost"], 30)
    create_authority(tmp_path / "a", "a", 100)
    create_authority(tmp_path / "b", "b", 100)
    (tmp_path / "a" / "ca.crt").write_bytes((tmp_path / "b" / "ca.crt").read_bytes())
    with pytest.raises(CertificateError, match=r"ca\.key does not belong to ca\.crt"):
        issue_server(tmp_path / "a", tmp_path, ["localhost"], 30)
    (tmp_path / "a" / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(CertificateError, match=r"ca\.crt: not a certificate"):
        certificate_facts(tmp_path / "a" / "ca.crt")
    (tmp_path / "b" / "ca.key").chmod(0o644)
    with pytest.raises(TrustError, match="chmod 600"):
        issue_server(tmp_path / "b", tmp_path, ["localhost"], 30)

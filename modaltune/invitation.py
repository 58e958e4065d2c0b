"""What a coordinator hands to a hospital: one JSON file, none of it secret, all of it to be checked on arrival."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from modaltune.errors import ConfigError
from modaltune.federation.settings import Name
from modaltune.federation.study import first_problem
from modaltune.storage import write_text
from modaltune.trust.certificates import certificate_fingerprint
from modaltune.trust.keys import fingerprint


class Invitation(BaseModel):
    """An invitation of one site.

    Attributes:
        site: the name that studies use for the hospital.
        coordinator: ``HOST:PORT``, the one address that the hospital connects to.
        ca: PEM of the authority that signed the coordinator's certificate.
        public_key: PEM of the key that signs the coordinator's releases and audit log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: Name
    coordinator: Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]+|\[[A-Fa-f0-9:.]+\]):[0-9]{1,5}$")]
    ca: Annotated[str, Field(pattern=r"^-----BEGIN CERTIFICATE-----")]
    public_key: Annotated[str, Field(pattern=r"^-----BEGIN PUBLIC KEY-----")]

    @field_validator("coordinator")
    @classmethod
    def _reachable(cls, address: str) -> str:
        if not 0 < int(address.rpartition(":")[2]) < 2**16:
            raise ValueError("expected HOST:PORT with a port from 1 to 65535")
        return address

    @field_validator("ca")
    @classmethod
    def _one_authority(cls, pem: str) -> str:
        """The one certificate whose fingerprint is compared, and nothing else: TLS would trust whatever is in the file.

        Raises:
            ValueError: it is none, several, or one that signs no others.
        """
        try:
            found = x509.load_pem_x509_certificates(pem.encode())
        except ValueError:
            raise ValueError("the authority is no certificate (PEM)") from None
        if len(found) != 1:
            raise ValueError(f"{len(found)} certificates, expected the one of the authority")
        try:
            signs = found[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            signs = False
        if not signs:
            raise ValueError("the certificate is not an authority's")
        return found[0].public_bytes(Encoding.PEM).decode("ascii")

    def save(self, path: Path) -> None:
        """Write ``SITE.invite``."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    def fingerprints(self) -> dict[str, str]:
        """Of the authority's certificate and of the coordinator's key: short enough to be read out on the telephone."""
        return {"authority": certificate_fingerprint(self.ca), "coordinator key": fingerprint(self.public_key)}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read ``SITE.invite``."""
        if not path.is_file():
            raise ConfigError(f"{path}: no such invitation; the coordinator writes it with modaltune-server invite")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ConfigError(
                f"{path}: no invitation: {first_problem(error)}; ask the coordinator for it again"
            ) from None

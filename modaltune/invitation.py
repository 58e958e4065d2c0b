"""What a coordinator hands to a hospital: one JSON file, none of it secret, all of it to be checked on arrival."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modaltune.errors import ConfigError
from modaltune.federation.study import Name, first_problem
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
    coordinator: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]-]+:[0-9]{1,5}$")]
    ca: Annotated[str, Field(pattern=r"^-----BEGIN CERTIFICATE-----")]
    public_key: Annotated[str, Field(pattern=r"^-----BEGIN PUBLIC KEY-----")]

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

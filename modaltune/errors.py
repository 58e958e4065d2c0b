"""Every error this project raises on purpose.

ModalTuneError          exit code 2: the user or the data is at fault, one line says what to do
├── ConfigError         a value in a study, site or model configuration
├── DataError           a file or table of a site
│   ├── SiteFolderError     folder, site.toml or a path it names
│   ├── CaseTableError      cases table
│   ├── SplitError          splits table
│   ├── ExpressionError     expression table
│   ├── ModalityError       table of a further modality
│   ├── FeatureFileError    bag features (HDF5) or slides table
│   ├── SlideError          a whole-slide image
│   └── LabelError          a label that the vocabulary does not know
├── DeviceError         a GPU that is absent or has too little memory
├── FetchError          a download of public data that failed or did not match its checksum
├── ModelFileError      weights that are absent, truncated or have the wrong hash
├── TrustError          a key, a signature or a signed release
│   ├── AuditError          an audit log that was changed, cut off or signed by somebody else
│   └── CertificateError    a TLS certificate or the authority that issues it
├── ServiceError        programs that should run in the background, and do not
└── FederationError     a study that cannot be run as asked
    ├── ProbeError          a probe that no coefficients fit: one class, no death, separation
    ├── ReleaseRefused      a model that its own test scores do not support
    ├── ReplyRefused        one site's reply broke the manifest; carries the site and a reason code
    └── MessageRefused      a hospital's daemon let a message neither in nor out; carries a code
RunFailed               exit code 4: the federation ended without a model

Messages name what, where, found, expected and the fix. They never contain a patient identifier,
a measured value or a row of a hospital's table: row numbers stand for patients.
"""

from __future__ import annotations


class ModalTuneError(Exception):
    """Root of all deliberate errors; its text is one line that may be shown to anyone."""

    exit_code = 2


class ConfigError(ModalTuneError):
    """A configuration value is unknown, out of range or inconsistent with another."""


class DataError(ModalTuneError):
    """A file or table of a site cannot be used."""


class SiteFolderError(DataError):
    """A site folder, its ``site.toml`` or a path named there."""


class CaseTableError(DataError):
    """The cases table of a site."""


class SplitError(DataError):
    """The splits table of a site."""


class ExpressionError(DataError):
    """The expression table of a site."""


class ModalityError(DataError):
    """The table of a further modality of a site: report texts or numbers."""


class FeatureFileError(DataError):
    """Bag features or the slides table of a site."""


class SlideError(DataError):
    """A whole-slide image that cannot be read, or not at the resolution asked for."""


class LabelError(DataError):
    """A label value that the study's vocabulary does not know."""


class DeviceError(ModalTuneError):
    """A GPU that is absent or has too little memory."""


class FetchError(ModalTuneError):
    """A download of public data that failed, broke off or did not match its checksum."""


class ModelFileError(ModalTuneError):
    """Model weights that are absent, truncated, incomplete or have the wrong hash."""


class TrustError(ModalTuneError):
    """A key, a signature or a signed release that cannot be relied on."""


class AuditError(TrustError):
    """An audit log that was changed, cut off or signed by somebody else."""


class CertificateError(TrustError):
    """A TLS certificate, or the authority that issues it."""


class ServiceError(ModalTuneError):
    """Programs that should run in the background, and cannot be started, reached or stopped."""


class FederationError(ModalTuneError):
    """A federation that cannot be run as asked."""


class ProbeError(FederationError):
    """A probe that cannot be fitted: one class, no death, or coefficients that grow without end."""


class ReleaseRefused(FederationError):
    """A model whose test scores do not support a release, and no override was given."""


class ReplyRefused(FederationError):
    """One site's reply broke the manifest."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"reply of {site} refused: {reason}")
        self.site = site
        self.reason = reason


class MessageRefused(FederationError):
    """A hospital's daemon let a message neither in nor out.

    Attributes:
        code: one word, all that the coordinator is told.
        reason: for the hospital's own log.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class RunFailed(ModalTuneError):
    """The federation ended without a model."""

    exit_code = 4

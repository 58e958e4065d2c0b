"""Approved studies: what the hospital's security office said yes to, one file each."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modaltune.data.slide_settings import SlideSettings
from modaltune.errors import ConfigError, MessageRefused
from modaltune.federation.settings import Digest, Name
from modaltune.federation.study import Study
from modaltune.storage import canonical_json, digest_text, write_text

if TYPE_CHECKING:
    from client.runtime import Site

logger = logging.getLogger(__name__)
Count = Annotated[int, Field(ge=0)]


class Cases(BaseModel):
    """Cases of each split when the study was approved; no reply may claim more. They stay here."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    train: Count
    val: Count
    test: Count


class Approval(BaseModel):
    """One study, the one bundle that may run it, and what they may say about this site.

    Attributes:
        bundle: SHA-256 of the Flower bundle.
        site: name of this site in the study's roster.
        minimum: counts below it do not leave.
        patches: what the feature files said of them.
        when, by: UTC time, and the account that approved.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    study: Study
    bundle: Digest
    site: Name
    minimum: Annotated[int, Field(ge=1)]
    cases: Cases
    patches: SlideSettings = SlideSettings()
    when: str
    by: str

    @property
    def digest(self) -> str:
        """Names this approval: to approve the same study again gives another one."""
        return digest_text(canonical_json(self.model_dump(mode="json")))

    @classmethod
    def of(cls, site: Site, bundle: str) -> Self:
        """Approve what a site was shown, now, by who runs this command."""
        splits = site.cohort.cases["split"]
        return cls(
            study=site.study,
            bundle=bundle,
            site=site.cohort.site,
            minimum=site.minimum,
            cases=Cases(**{name: int((splits == name).sum()) for name in Cases.model_fields}),
            patches=site.patches,
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            by=getuser(),
        )


class Approvals:
    """A folder of ``DIGEST.json``; read anew for every message, so that a withdrawal counts at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, approval: Approval) -> None:
        """Approve a study; an earlier approval of the same one is replaced."""
        write_text(self._path(approval.study.digest), approval.model_dump_json(indent=1) + "\n")

    def withdraw(self, digest: str) -> None:
        """Forget the approval of a study."""
        self._path(digest).unlink(missing_ok=True)

    def known(self, digest: str) -> str:
        """The whole digest of an approved study, given the beginning of one."""
        found = [path for path in self._paths() if digest and path.stem.startswith(digest)]
        if len(found) != 1:
            known = ", ".join(path.stem[:12] for path in self._paths()) or "none"
            raise ConfigError(
                f"{len(found)} approved studies have a digest that starts with {digest[:12]!r}; approved: {known}"
            )
        return found[0].stem

    def all(self) -> list[Approval]:
        """Every approval, by digest. A file that cannot be read approves nothing, and does not stop the others."""
        found = {path: self._read(path) for path in self._paths()}
        for path in (path for path, approval in found.items() if approval is None):
            logger.warning("%s: not an approval that this release wrote; approve the study again or remove it", path)
        return [approval for approval in found.values() if approval is not None]

    def unreadable(self) -> list[str]:
        """Names of files that approve nothing: damaged, or of another release."""
        return [path.name for path in self._paths() if self._read(path) is None]

    def of_bundle(self, bundle: str) -> list[Approval]:
        """The approvals of studies that a bundle may run.

        Raises:
            MessageRefused: there is none.
        """
        approved = [approval for approval in self.all() if approval.bundle == bundle]
        if not approved:
            raise MessageRefused("BundleNotApproved", f"bundle {bundle[:12]}... is not approved here")
        return approved

    def of(self, digest: str, bundle: str) -> Approval:
        """The approval of a study together with a bundle.

        Raises:
            MessageRefused: there is none.
        """
        for approval in self.of_bundle(bundle):
            if approval.study.digest == digest:
                return approval
        raise MessageRefused("StudyNotApproved", f"study {digest[:12]}... is not approved here with this bundle")

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.json"

    def _read(self, path: Path) -> Approval | None:
        try:
            approval = Approval.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError):
            return None
        return approval if approval.study.digest == path.stem else None

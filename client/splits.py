"""Which case was in which split when a study was approved: a keyed hash of each identifier, and no identifier."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from client.home import Home
from modaltune.data.site_splits import case_splits, split_files
from modaltune.errors import ConfigError, MessageRefused, ModalTuneError
from modaltune.federation.settings import Digest
from modaltune.storage import canonical_json, write_text
from modaltune.trust.keys import read_private, write_private

Splits = dict[Digest, Literal["train", "val", "test"]]
"""HMAC-SHA256 of a case's identifier -> its split."""
_Stamp = tuple[int, int, int] | None
_SPLITS: TypeAdapter[Splits] = TypeAdapter(Splits)
_MEND = "restore the split, or approve again with --new-split"

logger = logging.getLogger(__name__)


class SplitJournal:
    """The files of :meth:`Home.splits_of`; they outlive a withdrawal."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._compared: dict[str, tuple[list[_Stamp], int]] = {}

    def merged(self, study: str, splits: pd.Series, *, new_split: bool) -> tuple[Splits, int]:
        """What to keep of a study that is being approved: the cases known before, and those of now.

        Args:
            study: its digest.
            splits: split of each case, index ``case_id``.
            new_split: accept known cases in another split.
        Returns:
            The splits, and how many known cases have moved.
        Raises:
            ConfigError: some have, and this is not accepted.
        """
        now = self._hashed(study, splits)
        known = self._read(study) if self.home.splits_of(study).exists() else {}
        moved = _moved(known, now)
        if moved and not new_split:
            raise ConfigError(
                f"{moved} case(s) are in another split than when study {study[:12]}... was approved before; {_MEND}"
            )
        return known | now, moved

    def write(self, study: str, splits: Splits) -> None:
        """Keep the splits of a study."""
        path = self.home.splits_of(study)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_text(path, canonical_json(splits), mode=0o600)
        self.home.own(path.parent, self.home.split_key, path)

    def check(self, study: str, folder: Path) -> None:
        """Let a question of a study pass while every known case of a site folder is in its split.

        Raises:
            MessageRefused: some are not, or it cannot be found out.
        """
        try:
            moved = self._moved_since(study, folder)
        except ModalTuneError as problem:
            raise MessageRefused(type(problem).__name__, str(problem)) from None
        except Exception as problem:  # whatever a site's data provokes must not end the daemon
            logger.exception("the split of study %s cannot be compared", study)
            reason = f"the split cannot be compared: {type(problem).__name__}; see the log of the daemon"
            raise MessageRefused("UnexpectedError", reason) from None
        if moved:
            raise MessageRefused("SplitChanged", f"{moved} case(s) are in another split than at the approval; {_MEND}")

    def _moved_since(self, study: str, folder: Path) -> int:
        kept = self.home.splits_of(study)
        if not kept.exists():
            return 0
        stamps = [_stamp(path) for path in (kept, *split_files(folder))]
        if study not in self._compared or self._compared[study][0] != stamps:
            now = self._hashed(study, case_splits(folder, split_salt=study))
            self._compared[study] = stamps, _moved(self._read(study), now)
        return self._compared[study][1]

    def _hashed(self, study: str, splits: pd.Series) -> Splits:
        key = hmac.digest(self._secret(), study.encode(), "sha256")
        return {hmac.digest(key, str(case).encode(), "sha256").hex(): split for case, split in splits.items()}

    def _secret(self) -> bytes:
        path = self.home.split_key
        if not path.exists():
            if any(self.home.splits.glob("*.json")):
                raise ConfigError(
                    f"{path}: missing, and nothing in {self.home.splits} can be compared without it; put it back from a"
                    " backup, or remove that folder and approve every study again"
                )
            write_private(path, secrets.token_bytes(32))
        return read_private(path)

    def _read(self, study: str) -> Splits:
        path = self.home.splits_of(study)
        try:
            return _SPLITS.validate_json(path.read_bytes())
        except ValidationError:
            raise ConfigError(
                f"{path}: damaged; put it back from a backup, or remove it and approve the study again"
            ) from None


def _moved(known: Mapping[str, str], now: Mapping[str, str]) -> int:
    return sum(known.get(case, split) != split for case, split in now.items())


def _stamp(path: Path) -> _Stamp:
    """Changes with the content of a file, also where a copy keeps size and time; None while there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns

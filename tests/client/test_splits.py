"""Splits of an approved study: kept without identifiers, compared before each question, changed only aloud."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pandas as pd
import pytest

from client import splits
from client.home import Home
from client.splits import SplitJournal
from modaltune.data.site_splits import case_splits
from modaltune.errors import ConfigError, MessageRefused
from server.coordinator.bundle import Bundle
from tests.client.conversation import CAPABILITY, Conversation
from tests.client.wire import Wire

HOW_MANY = 12
PATIENT = "SYN-H1-0007"


@pytest.fixture
def site(conversation: Conversation, home: Home, tmp_path: Path) -> Path:
    """A copy of the hospital's data that may be edited; its home knows no other."""
    copy = tmp_path / "site"
    shutil.copytree(conversation.folder, copy)
    settings = home.folder / "client.toml"
    settings.write_text(settings.read_text().replace(str(conversation.folder), str(copy)))
    return copy


@pytest.fixture
def study(conversation: Conversation, home: Home, site: Path) -> str:
    """Digest of a study whose splits were kept when it was approved."""
    approve(home, site, conversation.study.digest)
    return conversation.study.digest


def approve(home: Home, site: Path, study: str, *, new_split: bool = False) -> int:
    journal = SplitJournal(home)
    kept, moved = journal.merged(study, case_splits(site, split_salt=study), new_split=new_split)
    journal.write(study, kept)
    return moved


def swap(site: Path, count: int = HOW_MANY) -> None:
    """Exchange the splits of some training and as many test cases: the counts stay as they were approved."""
    cases = pd.read_parquet(site / "cases.parquet")
    train, test = (cases.index[cases["split"] == name][:count] for name in ("train", "test"))
    assert len(train) == len(test) == count
    cases.loc[train, "split"], cases.loc[test, "split"] = "test", "train"
    cases.to_parquet(site / "cases.parquet")


def add_patients(site: Path) -> None:
    cases = pd.read_parquet(site / "cases.parquet")
    new = cases.head(3).assign(case_id=["NEW-1", "NEW-2", "NEW-3"], split=["train", "val", "test"])
    pd.concat([cases, new]).to_parquet(site / "cases.parquet")


def remove_patients(site: Path) -> None:
    pd.read_parquet(site / "cases.parquet").iloc[5:].to_parquet(site / "cases.parquet")


@pytest.fixture
def wire(home: Home, bundle: Bundle, study: str) -> Wire:
    assert study
    return Wire(home, bundle)


def passes(wire: Wire, conversation: Conversation) -> bool:
    wire.ask(conversation.message(CAPABILITY))
    return wire.guard.asked is not None


def test_exchanged_patients_are_noticed_until_they_are_put_back(
    wire: Wire, conversation: Conversation, site: Path
) -> None:
    assert passes(wire, conversation)
    swap(site)
    for _ in range(2):
        wire.ask(conversation.message(CAPABILITY))
        assert wire.refused() == "SplitChanged"
    assert wire.log[-1]["facts"]["reason"].startswith(f"{2 * HOW_MANY} case(s) are in another split than at the")
    shutil.copy(conversation.folder / "cases.parquet", site / "cases.parquet")
    assert passes(wire, conversation)


def test_the_coordinator_hears_the_same_of_one_exchange_and_of_many(
    wire: Wire, conversation: Conversation, site: Path
) -> None:
    heard = []
    for count in (1, HOW_MANY):
        shutil.copy(conversation.folder / "cases.parquet", site / "cases.parquet")
        swap(site, count)
        wire.ask(conversation.message(CAPABILITY))
        heard.append(wire.answer().content)
    assert heard[0] == heard[1]


@pytest.mark.parametrize("change", [add_patients, remove_patients])
def test_patients_may_come_and_go(change: object, wire: Wire, conversation: Conversation, site: Path) -> None:
    change(site)  # type: ignore[operator]
    assert passes(wire, conversation)


def test_a_patient_who_left_comes_back_into_the_same_split(home: Home, study: str, site: Path) -> None:
    before = pd.read_parquet(site / "cases.parquet")
    remove_patients(site)
    approve(home, site, study)
    before.to_parquet(site / "cases.parquet")
    swap(site, 1)
    with pytest.raises(ConfigError, match="2 case"):
        approve(home, site, study)


def test_an_approval_of_an_older_release_goes_on(wire: Wire, conversation: Conversation, site: Path) -> None:
    wire.home.splits_of(conversation.study.digest).unlink()
    swap(site)
    assert passes(wire, conversation)


def test_a_case_is_known_in_one_study_and_home_only(home: Home, study: str, site: Path, tmp_path: Path) -> None:
    splits_of_cases = case_splits(site, split_salt=study)
    approve(home, site, "0" * 64)
    other = Home(tmp_path / "other")
    other.make()
    approve(other, site, study)
    files = [home.splits_of(study), home.splits_of("0" * 64), other.splits_of(study)]
    kept = [set(json.loads(file.read_bytes())) for file in files]
    assert [len(names) for names in kept] == [len(splits_of_cases)] * 3
    assert len(set.union(*kept)) == 3 * len(splits_of_cases)


def test_what_is_kept_has_no_identifier_and_is_for_its_owner(home: Home, study: str, site: Path) -> None:
    text = home.splits_of(study).read_text()
    assert not any(str(case) in text for case in case_splits(site, split_salt=study).index)
    assert len(home.split_key.read_bytes()) == 32
    for path, mode in {home.splits_of(study): 0o600, home.split_key: 0o600, home.splits: 0o700}.items():
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another account")
def test_what_root_approves_the_account_of_the_daemon_can_read(home: Home, site: Path) -> None:
    shutil.rmtree(home.splits)
    os.chown(home.state, 65534, 65534)
    approve(home, site, "0" * 64)
    for path in (home.splits, home.splits_of("0" * 64), home.split_key):
        assert path.stat().st_uid == 65534


def test_the_tables_are_read_when_they_changed_and_not_for_each_message(
    home: Home, study: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(folder: Path, *, split_salt: str) -> pd.Series:
        read.append(folder)
        return case_splits(folder, split_salt=split_salt)

    monkeypatch.setattr(splits, "case_splits", counted)
    journal = SplitJournal(home)
    for _ in range(3):
        journal.check(study, site)
    assert len(read) == 1
    before = (site / "cases.parquet").stat()
    add_patients(site)
    os.utime(site / "cases.parquet", ns=(before.st_atime_ns, before.st_mtime_ns))
    journal.check(study, site)
    assert len(read) == 2


def test_a_question_does_not_pass_while_the_tables_cannot_be_read(
    wire: Wire, conversation: Conversation, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "cases.parquet").write_bytes(b"half a ta")
    wire.ask(conversation.message(CAPABILITY))
    assert wire.refused() == "CaseTableError"

    def confused(*_: object, **__: object) -> None:
        raise KeyError(PATIENT)

    monkeypatch.setattr(splits, "case_splits", confused)
    wire.ask(conversation.message(CAPABILITY))
    assert wire.refused() == "UnexpectedError"
    assert PATIENT not in wire.home.audit.read_text()


def test_without_the_key_or_with_a_damaged_file_nothing_passes(home: Home, study: str, site: Path) -> None:
    home.splits_of(study).write_text(f'{{"{PATIENT}": "train"}}')
    with pytest.raises(MessageRefused, match=r"ConfigError: .*damaged; put it back") as refusal:
        SplitJournal(home).check(study, site)
    assert PATIENT not in refusal.value.reason
    home.split_key.unlink()
    for ask in (lambda: SplitJournal(home).check(study, site), lambda: approve(home, site, study)):
        with pytest.raises((MessageRefused, ConfigError), match=r"splits\.key: missing"):
            ask()
    assert not home.split_key.exists()

"""The hospital's commands on a real site folder: what they write, what they say, what they refuse."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

import client.cli
from client.approvals import Approvals
from client.bundle import installed_bundle
from client.home import Home
from client.network import Coordinator
from modaltune.invitation import Invitation
from modaltune.storage import digest_text
from modaltune.trust.audit import AuditLog
from modaltune.trust.certificates import certificate_facts, create_authority
from modaltune.trust.keys import SigningKey, fingerprint
from server.coordinator.bundle import build_bundle
from tests.client.conversation import Conversation

Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """A command with its home folder: exit status, JSON document if there is one, stderr."""
    monkeypatch.setenv("MODALTUNE_CLIENT_HOME", str(tmp_path / "home"))

    def call(*arguments: object) -> tuple[int, Any, str]:
        monkeypatch.setattr(sys, "argv", ["modaltune-client", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            client.cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out) if out else None, err

    return call


@pytest.fixture
def invitation(tmp_path: Path) -> Path:
    create_authority(tmp_path / "ca", "test", 30)
    path = tmp_path / "H1.invite"
    Invitation(
        site="H1",
        coordinator="federation.example.org:8443",
        ca=(tmp_path / "ca" / "ca.crt").read_text(),
        public_key=SigningKey.create(tmp_path / "key").public_pem,
    ).save(path)
    return path


@pytest.fixture
def home(run: Run, invitation: Path, conversation: Conversation, tmp_path: Path) -> Home:
    code, _, err = run("init", "--invitation", invitation, "--site-folder", conversation.folder, "--out", tmp_path)
    assert code == 0, err
    return Home(tmp_path / "home")


@pytest.fixture
def study(conversation: Conversation, tmp_path: Path) -> Path:
    path = tmp_path / "study.json"
    path.write_text(conversation.study.to_json())
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def events(home: Home) -> list[str]:
    return [json.loads(line)["event"] for line in home.audit.read_text().splitlines()]


def assert_one_line(result: tuple[int, Any, str], text: str) -> None:
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, None, 1), err
    assert text in err


def test_init_makes_keys_that_only_their_owner_can_read(home: Home, tmp_path: Path) -> None:
    for secret in (home.node_key, home.audit_key, home.secret):
        assert mode(secret) == 0o600
    for folder in (home.keys, home.approvals, home.state, home.splits, home.flower, home.app, home.sent):
        assert mode(folder) == 0o700
    assert mode(home.cache / "text") == 0o755, "the app's account reads embedded labels there"
    assert isinstance(load_ssh_private_key(home.node_key.read_bytes(), None), EllipticCurvePrivateKey)
    assert (tmp_path / "H1.pub").read_bytes() == home.node_public.read_bytes()
    for unit in ("modaltune-client.service", "modaltune-client-app.service"):
        assert (home.folder / "systemd" / unit).is_file()
    assert "IPAddressDeny=any" in (home.folder / "systemd" / "modaltune-client-app.service").read_text()


def test_init_says_the_fingerprints_that_are_compared_with_the_coordinator(
    run: Run, invitation: Path, conversation: Conversation, tmp_path: Path
) -> None:
    given = ("--invitation", invitation, "--site-folder", conversation.folder, "--out", tmp_path, "--json")
    _, said, _ = run("init", *given)
    assert said["fingerprint"] == fingerprint((tmp_path / "H1.pub").read_text())
    assert said["authority"] == certificate_facts(tmp_path / "ca" / "ca.crt").sha256
    assert said["coordinator key"] == fingerprint(Invitation.load(invitation).public_key)
    assert_one_line(run("init", *given), "is a home folder already")


def test_an_invitation_with_a_damaged_certificate_makes_nothing(
    run: Run, invitation: Path, conversation: Conversation, tmp_path: Path
) -> None:
    found = json.loads(invitation.read_text())
    invitation.write_text(json.dumps(found | {"ca": found["ca"][:200]}))
    ran = run("init", "--invitation", invitation, "--site-folder", conversation.folder, "--out", tmp_path)
    assert_one_line(ran, "the authority is no certificate")
    assert not (tmp_path / "home").exists()


def test_an_invitation_that_brings_a_second_authority_makes_nothing(
    run: Run, invitation: Path, conversation: Conversation, tmp_path: Path
) -> None:
    create_authority(tmp_path / "other", "other", 30)
    found, other = json.loads(invitation.read_text()), (tmp_path / "other" / "ca.crt").read_text()
    invitation.write_text(json.dumps(found | {"ca": found["ca"] + other}))
    given = ("init", "--invitation", invitation, "--site-folder", conversation.folder, "--out", tmp_path)
    assert_one_line(run(*given), "2 certificates, expected the one of the authority")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("address", ["a:99999", "a:0", "::::::8443", "a b:1", ":8443", "a"])
def test_an_invitation_to_no_address_makes_nothing(
    run: Run, invitation: Path, conversation: Conversation, tmp_path: Path, address: str
) -> None:
    invitation.write_text(json.dumps(json.loads(invitation.read_text()) | {"coordinator": address}))
    ran = run("init", "--invitation", invitation, "--site-folder", conversation.folder, "--out", tmp_path)
    assert_one_line(ran, "no invitation: coordinator")
    assert not (tmp_path / "home").exists()


def test_what_the_log_cannot_say_is_not_approved(
    run: Run, home: Home, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(AuditLog, "append", full)
    assert_one_line(run("approve", study, "--bundle", "0" * 64), "No space left on device")
    assert not Approvals(home.approvals).all()
    assert not list(home.splits.iterdir())


@pytest.mark.parametrize("command", ["withdraw", "resume", "pause"])
def test_nothing_happens_that_the_log_cannot_say(
    command: str, run: Run, home: Home, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Approvals(home.approvals).add(conversation.approval)
    if command == "resume":
        run("pause")
    monkeypatch.setattr(AuditLog, "append", full)
    more = [conversation.study.digest] if command == "withdraw" else []
    assert_one_line(run(command, *more), "No space left on device")
    assert len(Approvals(home.approvals).all()) == 1
    assert home.paused == (command == "resume")


def test_the_log_names_the_authority_from_the_first_line_on(home: Home, tmp_path: Path) -> None:
    (line,) = home.audit.read_text().splitlines()
    assert json.loads(line)["facts"]["authority"] == certificate_facts(tmp_path / "ca" / "ca.crt").sha256


@pytest.mark.parametrize("given", [True, False])
def test_the_doctor_trusts_the_authority_of_the_home_for_its_own_coordinator_only(
    given: bool, run: Run, home: Home, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []
    honest = Coordinator.__init__

    def watched(self: Coordinator, address: str, roots: Path | None = None) -> None:
        seen.append(roots)
        honest(self, "localhost:1", roots)

    monkeypatch.setattr(Coordinator, "__init__", watched)
    run("doctor", conversation.folder, "--json", *(["--coordinator", "other.example.org:443"] if given else []))
    assert seen[-1] == (None if given else home.authority)


def test_the_doctor_of_an_enrolled_hospital_checks_the_way_to_its_coordinator(
    run: Run, home: Home, conversation: Conversation
) -> None:
    settings = home.folder / "client.toml"
    settings.write_text(settings.read_text().replace("federation.example.org:8443", "localhost:1"))
    code, said, _ = run("doctor", conversation.folder, "--json")
    found = {finding["check"]: finding for finding in said["checks"]}
    assert (code, found["dns"]["status"], found["tcp"]["status"]) == (2, "ok", "error")
    assert {"tls", "health", "clock"} <= set(found)
    shutil.rmtree(home.folder)
    assert "dns" not in {finding["check"] for finding in run("doctor", conversation.folder, "--json")[1]["checks"]}


@pytest.mark.parametrize("text", ["", '{"rounds": {'])
def test_damaged_state_is_one_line_or_no_news(run: Run, home: Home, text: str) -> None:
    home.status.write_text(text)
    code, said, _ = run("status", "--json")
    assert (code, said["seconds since contact"]) == (0, None)
    home.usage.write_text(text)
    assert_one_line(run("status"), "usage.json: damaged; put it back from a backup")


def test_an_invitation_of_another_site_is_refused(run: Run, invitation: Path, conversation: Conversation) -> None:
    other = conversation.folder.with_name("H2")
    result = run("init", "--invitation", invitation, "--site-folder", other)
    assert_one_line(result, "the invitation is for site H1")
    assert not Home.find(None).folder.exists()


@pytest.mark.parametrize("command", ["check", "approve"])
def test_expression_without_the_studys_genes_is_refused_here(
    run: Run, home: Home, conversation: Conversation, tmp_path: Path, command: str
) -> None:
    other = conversation.study.model_copy(update={"gene_sets": {"SET": ("A1", "A2", "A3")}})
    (tmp_path / "other.json").write_text(other.to_json())
    message = "site H1: expression has 0 of the 3 genes of the study's gene sets"
    assert_one_line(run(command, tmp_path / "other.json"), message)
    assert not Approvals(home.approvals).all()


def test_check_names_every_array_and_its_bytes(run: Run, home: Home, study: Path, conversation: Conversation) -> None:
    code, said, err = run("check", study, "--json")
    assert (code, err) == (0, "")
    manifest = conversation.question("train").manifest
    assert {name: tuple(entry["shape"]) for name, entry in said["training"].items()} == manifest.shapes
    assert said["training bytes"] == sum(entry["bytes"] for entry in said["training"].values())
    assert said["training bytes"] == pytest.approx(manifest.megabytes * 1e6)
    assert said["bundle"] == installed_bundle()
    assert set(said["weights"].values()) == {conversation.study.slides.sha256, conversation.study.text.sha256}


def test_both_sides_compute_the_same_bundle() -> None:
    assert installed_bundle() == build_bundle().sha256


def test_an_approval_holds_until_it_is_withdrawn(run: Run, home: Home, study: Path, conversation: Conversation) -> None:
    digest = conversation.study.digest
    code, said, err = run("approve", study, "--json")
    assert (code, said["study"], said["bundle"]) == (0, digest, installed_bundle()), err
    assert list(home.approvals.iterdir()) == [home.approvals / f"{digest}.json"]
    assert list((home.cache / "text").iterdir()), "label embeddings wait for the client app"
    _, said, _ = run("status", "--json")
    assert said["approved"] == {conversation.study.name: digest}
    assert run("withdraw", digest[:12])[0] == 0
    assert_one_line(run("withdraw", study), "0 approved studies have a digest")
    assert events(home) == ["init", "approve", "withdraw"]
    code, said, _ = run("audit", "verify", "--json")
    assert (code, said["lines"]) == (0, 3)


def test_a_second_approval_takes_new_patients_and_moved_ones_only_aloud(
    run: Run, home: Home, study: Path, conversation: Conversation, tmp_path: Path
) -> None:
    site, settings = tmp_path / "site", home.folder / "client.toml"
    shutil.copytree(conversation.folder, site)
    settings.write_text(settings.read_text().replace(str(conversation.folder), str(site)))
    kept = home.splits_of(conversation.study.digest)
    assert run("approve", study, "--json")[0] == 0
    first = json.loads(kept.read_text())
    for table in ("cases.parquet", "expression.parquet"):
        rows = pd.read_parquet(site / table)
        pd.concat([rows, rows.head(1).assign(case_id="NEW-1")]).to_parquet(site / table)
    code, said, err = run("approve", study, "--json")
    assert (code, said["splits"]) == (0, digest_text(kept.read_text())), err
    second = json.loads(kept.read_text())
    assert (len(second), first.items() <= second.items()) == (len(first) + 1, True)

    cases = pd.read_parquet(site / "cases.parquet").reset_index(drop=True)
    moved = [cases.index[cases["split"] == split][:12] for split in ("train", "test")]
    cases.loc[moved[0], "split"], cases.loc[moved[1], "split"] = "test", "train"
    cases.to_parquet(site / "cases.parquet")
    run("withdraw", study)
    assert_one_line(run("approve", study), "24 case(s) are in another split than when study")
    assert not Approvals(home.approvals).all()
    assert json.loads(kept.read_text()) == second
    code, said, err = run("approve", study, "--new-split", "--json")
    assert (code, said["moved"]) == (0, 24), err
    line = json.loads(home.audit.read_text().splitlines()[-1])
    assert (line["event"], line["facts"]["moved"]) == ("approve", 24)
    assert line["facts"]["splits"] == digest_text(kept.read_text())
    assert run("approve", study)[0] == 0, "the new split counts from now on"


def test_status_names_studies_that_were_approved_before_splits_were_kept(
    run: Run, home: Home, conversation: Conversation, study: Path
) -> None:
    Approvals(home.approvals).add(conversation.approval)
    assert run("status", "--json")[1]["approved before splits were kept"] == [conversation.study.name]
    run("approve", study)
    assert "approved before splits were kept" not in run("status", "--json")[1]


def test_a_home_without_a_site_says_what_to_do(run: Run, home: Home) -> None:
    shutil.rmtree(home.folder)
    for command in (("audit", "verify"), ("status",), ("resume",)):
        assert_one_line(run(*command), "run modaltune-client init")


def test_a_changed_line_of_the_log_is_found(run: Run, home: Home) -> None:
    run("pause")
    run("resume")
    home.audit.write_text(home.audit.read_text().replace('"pause"', '"peace"'))
    assert_one_line(run("audit", "verify"), "line 2")


def test_a_pause_is_seen_and_ends(run: Run, home: Home) -> None:
    for command, paused in (("pause", True), ("resume", False)):
        assert run(command)[0] == 0
        assert (home.paused, run("status", "--json")[1]["paused"]) == (paused, paused)


def test_a_study_that_does_not_fit_is_not_approved(
    run: Run, home: Home, study: Path, conversation: Conversation
) -> None:
    roster = conversation.study.model_copy(update={"roster": ("H7",)})
    study.write_text(roster.to_json())
    assert_one_line(run("approve", study), "site H1 is not in the roster")
    weights = conversation.study.slides.model_copy(update={"sha256": "0" * 64})
    study.write_text(conversation.study.model_copy(update={"slides": weights}).to_json())
    assert_one_line(run("approve", study), "differs from the study's")
    assert not list(home.approvals.iterdir())


def test_a_bundle_hash_has_64_digits(run: Run, home: Home, study: Path) -> None:
    assert_one_line(run("approve", study, "--bundle", "abc"), "64 hexadecimal digits")


@pytest.mark.parametrize(("old", "new"), [('"seed": 0', '"seed": 1'), ('"evaluation"', '"assessment"')])
def test_a_file_that_is_no_approval_approves_nothing_and_stops_no_other(
    run: Run, home: Home, study: Path, conversation: Conversation, old: str, new: str
) -> None:
    """Edited by hand, or written by a release whose studies had other fields."""
    run("approve", study)
    (file,) = home.approvals.iterdir()
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    other = conversation.study.model_copy(update={"seed": 7})
    study.write_text(other.to_json())
    run("approve", study)
    code, shown, _ = run("status", "--json")
    assert (code, list(shown["approved"].values())) == (0, [other.digest])
    assert shown["approvals that cannot be read"] == [file.name]
    assert [approval.study.digest for approval in Approvals(home.approvals).all()] == [other.digest]


SETTINGS = {
    "an unknown key": ("site = ", "colour = 'red'\nsite = ", "colour"),
    "an address without a port": (":8443", "", "expected HOST:PORT"),
    "a limit of nothing": ("rounds = 1000", "rounds = 0", "limits.rounds"),
    "an account that is not there": ('app_user = ""', 'app_user = "nobody-of-that-name"', "is no account"),
    "no TOML": ("site = ", "site ", "not valid TOML"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_wrong_settings_are_one_line(run: Run, home: Home, name: str) -> None:
    old, new, expected = SETTINGS[name]
    file = home.folder / "client.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    assert_one_line(run("status"), expected)


def test_without_a_home_the_command_to_make_one_is_named(run: Run) -> None:
    assert_one_line(run("status"), "run modaltune-client init")

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modaltune.errors import AuditError
from modaltune.trust.audit import REPAIRED, AuditLog, verify_log
from modaltune.trust.keys import SigningKey
from modaltune.trust.show import show_audit

Lines = list[bytes]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("keys") / "audit.key")


@pytest.fixture
def log(key: SigningKey, tmp_path: Path) -> AuditLog:
    """Five entries, as a site would write them."""
    log = AuditLog(tmp_path / "audit.jsonl", key)
    log.append("approved", study="ab" * 32, bundle="cd" * 32)
    for number in range(1, 4):
        log.append("reply-sent", round=number, bytes=1024 * number, keys=["a", "b"], norms={"a": 0.5})
    log.append("reply-refused", code="extra-key")
    return log


def head(log: AuditLog) -> Path:
    return log.path.with_name("audit.jsonl.head")


def lines(log: AuditLog) -> Lines:
    return log.path.read_bytes().splitlines(keepends=True)


def test_a_log_that_nobody_touched_is_verified(log: AuditLog, key: SigningKey) -> None:
    summary = verify_log(log.path, key.public_pem)
    assert summary.lines == 5
    assert summary.events == {"approved": 1, "reply-sent": 3, "reply-refused": 1}
    assert summary.first is not None
    assert summary.last is not None
    assert summary.first <= summary.last


def test_an_entry_says_what_when_and_in_which_order(log: AuditLog) -> None:
    entry = json.loads(lines(log)[1])
    assert entry["sequence"] == 2
    assert entry["event"] == "reply-sent"
    assert entry["facts"] == {"round": 1, "bytes": 1024, "keys": ["a", "b"], "norms": {"a": 0.5}}
    assert entry["time"].endswith("+00:00")
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def edited(old: bytes, new: bytes) -> Callable[[Lines], Lines]:
    return lambda lines: [line.replace(old, new) for line in lines]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (edited(b'"bytes":2048', b'"bytes":2049'), "line 3 was changed, or is signed with another key"),
        (edited(b"reply-refused", b"reply-sent"), "line 5 was changed"),
        (edited(b'"round":2', b'"round": 2'), "line 3 was changed: it is not written as an entry is"),
        (edited(b'"round":2', b'"round":NaN'), "line 3 was changed: it is not written as an entry is"),
        (lambda lines: [*lines[:2], b"\n", *lines[2:]], "line 3 was changed: it is not written as an entry is"),
        (lambda lines: [*lines[:2], b"[1]\n", *lines[2:]], "line 3 was changed: it is not written as an entry is"),
        (lambda lines: [*lines[:2], b"[" * 10**5 + b"\n"], "line 3 was changed: it is not written as an entry is"),
        (lambda lines: lines[1:], "line 1 is entry 2: lines were removed, repeated or reordered"),
        (lambda lines: lines[:2] + lines[3:], "line 3 is entry 4: lines were removed, repeated or reordered"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2 is entry 3: lines were removed, repeated"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 3 is entry 2: lines were removed, repeated"),
        (lambda lines: lines[:4], "line 5 is missing: cut off at the end, the head file names 5 lines"),
        (lambda lines: [], "line 1 is missing: cut off at the end, the head file names 5 lines"),
        (lambda lines: [*lines[:4], lines[4][:-1]], "line 5 is half-written"),
    ],
)
def test_a_tampered_log_is_found_at_its_first_bad_line(
    change: Callable[[Lines], Lines], found: str, log: AuditLog, key: SigningKey
) -> None:
    log.path.write_bytes(b"".join(change(lines(log))))
    with pytest.raises(AuditError, match=rf"audit\.jsonl: {found}") as caught:
        verify_log(log.path, key.public_pem)
    assert "\n" not in str(caught.value)


@given(position=st.integers(0), bit=st.integers(0, 7))
def test_no_bit_of_a_log_or_its_head_can_change_unnoticed(
    position: int, bit: int, key: SigningKey, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = AuditLog(tmp_path_factory.mktemp("log") / "audit.jsonl", key)
    log.append("one", bytes=1)
    log.append("two", bytes=2)
    files = [log.path, head(log)]
    target = files[position % 2]
    content = bytearray(target.read_bytes())
    if target == head(log):
        content = content[:-1]  # the newline after it says nothing
    place = position // 2 % len(content)
    content[place] ^= 1 << bit
    target.write_bytes(content)
    with pytest.raises(AuditError):
        verify_log(log.path, key.public_pem)


@pytest.mark.parametrize("change", ["line of another log", "whole other log", "older head, shorter log"])
def test_signed_lines_of_another_history_do_not_fit(
    change: str, log: AuditLog, key: SigningKey, tmp_path: Path
) -> None:
    other = AuditLog(tmp_path / "other" / "audit.jsonl", key)
    for number in range(5):
        other.append("other", number=number)
    if change == "line of another log":
        log.path.write_bytes(b"".join([*lines(log)[:2], lines(other)[2], *lines(log)[3:]]))
        found = "line 3 does not follow the line before it"
    elif change == "whole other log":
        log.path.write_bytes(other.path.read_bytes())
        found = "line 5 is not the one that the head file names"
    else:  # what the docstring admits: older copies of both files cannot be told from the real ones, alone
        log.path.write_bytes(b"".join(lines(other)[:3]))
        found = "line 4 is missing"
    with pytest.raises(AuditError, match=found):
        verify_log(log.path, key.public_pem)


def test_a_log_of_somebody_else_is_refused(log: AuditLog, tmp_path: Path) -> None:
    other = SigningKey.create(tmp_path / "other.key")
    with pytest.raises(AuditError, match="signed with another key"):
        verify_log(log.path, other.public_pem)
    with pytest.raises(AuditError, match="signed with another key"):
        AuditLog(log.path, other).append("mine")


def test_a_log_without_its_head_or_no_log_at_all_is_an_error(log: AuditLog, key: SigningKey) -> None:
    head(log).unlink()
    for check in (lambda: verify_log(log.path, key.public_pem), lambda: log.append("more")):
        with pytest.raises(AuditError, match=r"audit\.jsonl\.head: missing, so lines may be cut off"):
            check()
    log.path.unlink()
    with pytest.raises(AuditError, match="no such audit log"):
        verify_log(log.path, key.public_pem)


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_line_that_a_crash_cut_short_is_removed_and_its_removal_recorded(
    keep: int, log: AuditLog, key: SigningKey
) -> None:
    """The next line was being written, its head was not: what is left of it goes, everything else stays."""
    before, known = log.path.read_bytes(), head(log).read_bytes()
    log.append("lost", number=1)
    rest = lines(log)[-1][:keep]
    log.path.write_bytes(before + rest)
    head(log).write_bytes(known)
    with pytest.raises(AuditError, match="line 6 is half-written"):
        verify_log(log.path, key.public_pem)
    log.append("started")
    assert verify_log(log.path, key.public_pem).lines == 7
    assert log.path.read_bytes().startswith(before)
    repair, last = map(json.loads, lines(log)[5:])
    assert repair["event"] == REPAIRED
    assert repair["facts"]["bytes"] == len(rest)
    assert last["event"] == "started"


def test_a_crash_between_a_line_and_its_head_loses_nothing(log: AuditLog, key: SigningKey) -> None:
    known = head(log).read_bytes()
    log.append("sixth")
    head(log).write_bytes(known)
    assert verify_log(log.path, key.public_pem).lines == 6
    log.append("seventh")
    assert verify_log(log.path, key.public_pem).lines == 7


def test_a_failure_before_the_first_line_is_on_disk_loses_nothing(key: SigningKey, tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", key)
    with pytest.raises(TypeError):
        log.append("first", value=object())  # type: ignore[arg-type]
    log.path.write_bytes(b'{"event":"fir')
    log.append("second")
    assert verify_log(log.path, key.public_pem).events == {REPAIRED: 1, "second": 1}


@pytest.mark.parametrize("keep", [0, 3])
def test_nothing_is_added_to_a_log_that_was_cut_off(keep: int, log: AuditLog) -> None:
    """A cut that looks like a crash is none: the head knows that the line was complete."""
    for rest in (b"", lines(log)[keep][:30]):
        log.path.write_bytes(b"".join(lines(log)[:keep]) + rest)
        with pytest.raises(AuditError, match="does not end with the line 5 that its head file names"):
            log.append("more")
        assert log.path.read_bytes().endswith(rest)


def test_a_full_disk_loses_only_the_entry_that_was_refused(
    log: AuditLog, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        os.ftruncate(handle, os.fstat(handle).st_size - 10)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("modaltune.trust.audit.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            log.append("lost")
    log.append("space again")
    assert verify_log(log.path, key.public_pem).events[REPAIRED] == 1


def test_entries_longer_than_a_read_are_found_again(log: AuditLog, key: SigningKey) -> None:
    log.append("long", digests=["ab" * 32] * 3000)
    log.append("after")
    assert verify_log(log.path, key.public_pem).lines == 7


@pytest.mark.parametrize("facts", [{"value": float("nan")}, {"value": Path("x")}, {"value": b"x"}])
def test_what_is_not_json_is_refused_and_leaves_the_log_as_it_was(
    facts: dict[str, object], log: AuditLog, key: SigningKey
) -> None:
    before = log.path.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        log.append("wrong", **facts)  # type: ignore[arg-type]
    assert log.path.read_bytes() == before
    verify_log(log.path, key.public_pem)


def write_many(path: Path, key: SigningKey, name: str) -> None:
    log = AuditLog(path, key)
    for number in range(25):
        log.append(name, number=number)


def test_several_processes_share_one_log(key: SigningKey, tmp_path: Path) -> None:
    path, context = tmp_path / "audit.jsonl", multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, key, f"writer-{number}")) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    summary = verify_log(path, key.public_pem)
    assert summary.events == {f"writer-{number}": 25 for number in range(4)}


def test_a_process_killed_while_it_writes_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "audit.key")
    path = tmp_path / "audit.jsonl"
    program = (
        "import sys; from pathlib import Path; from modaltune.trust.audit import AuditLog;"
        "from modaltune.trust.keys import SigningKey; folder = Path(sys.argv[1]);"
        "log = AuditLog(folder / 'audit.jsonl', SigningKey.load(folder / 'audit.key'))\n"
        "while True: log.append('sent', digests=['ab' * 32] * 50)"
    )
    for start in range(2):
        writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
        known = path.stat().st_size if path.exists() else 0
        deadline = time.monotonic() + 20
        while (not path.exists() or path.stat().st_size < known + 20_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        AuditLog(path, key).append("started", start=start)
    assert verify_log(path, key.public_pem).events["started"] == 2


def test_people_and_programs_see_what_a_verified_log_holds(
    log: AuditLog, key: SigningKey, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = verify_log(log.path, key.public_pem)
    show_audit(log.path, key.public_pem, json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["lines"] == 5
    assert document["sha256"] == summary.sha256
    assert document["events"]["reply-sent"] == 3
    show_audit(log.path, key.public_pem, json=False)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "5 entries" in printed.err
    assert summary.sha256 in printed.err.replace("\n", "")


def test_a_log_that_is_not_intact_is_not_shown(log: AuditLog, key: SigningKey) -> None:
    log.path.write_bytes(b"")
    with pytest.raises(AuditError):
        show_audit(log.path, key.public_pem, json=True)

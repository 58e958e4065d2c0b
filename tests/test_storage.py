from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
import torch

from modaltune import storage
from modaltune.errors import FederationError, ModelFileError
from modaltune.storage import (
    append_json_line,
    canonical_json,
    digest_file,
    digest_state,
    digest_text,
    load_state,
    read_json_lines,
    save_state,
    write_bytes,
    write_json,
    write_text,
)

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(3), "scale": torch.tensor(2.0)}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    write_bytes(path, b"old")

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_brings_the_file_to_the_disk_and_then_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def note(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append((folder, (tmp_path / "file.json").exists()))

    monkeypatch.setattr(storage.os, "fsync", note)
    write_bytes(tmp_path / "file.json", b"content")
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize("before", [None, 0o644])
def test_a_file_has_the_rights_that_are_asked_for(before: int | None, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    if before is not None:
        path.touch()
        path.chmod(before)
    write_text(path, "content", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "old, longer")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o640)
    write_text(path, "newer")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("newer", 0o640)


@pytest.mark.parametrize(("umask", "rights"), [(0o077, 0o600), (0o027, 0o640), (0o022, 0o644)])
def test_a_new_file_has_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int, rights: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "patients.csv", "case_id\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "patients.csv").stat().st_mode) == rights


def test_readers_see_the_old_content_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    seen = []
    replace = os.replace
    monkeypatch.setattr(
        storage.os,
        "replace",
        lambda *names: (seen.append((path.read_text(), Path(names[0]).read_text())), replace(*names)),
    )
    write_text(path, "new")
    assert seen == [("old", "new")]


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": [1, 2], "a": {"d": 1, "c": "é"}}) == '{"a":{"c":"\\u00e9","d":1},"b":[1,2]}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


def test_not_a_number_has_no_json(tmp_path: Path) -> None:
    for write in (canonical_json, lambda value: write_json(tmp_path / "x.json", value)):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write({"value": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_json_line(tmp_path / "x.jsonl", {"value": float("inf")})
    assert not (tmp_path / "x.json").exists()


def test_lines_are_appended_one_object_each(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for number in range(3):
        append_json_line(path, {"number": number, "text": "two\nlines"})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["number"] for row in rows] == [0, 1, 2]


def test_digests_of_texts_and_files_are_sha256(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "content")
    assert digest_text("content") == digest_file(tmp_path / "x") == hashlib.sha256(b"content").hexdigest()


def test_the_digest_of_a_state_does_not_depend_on_order_or_memory_layout() -> None:
    expected = digest_state(STATE)
    assert digest_state(dict(reversed(STATE.items()))) == expected
    assert digest_state({**STATE, "weight": STATE["weight"].T.contiguous().T}) == expected
    assert digest_state({**STATE, "bias": torch.zeros(9)[::3]}) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"weight": STATE["weight"].reshape(3, 2)},
        {"weight": STATE["weight"].reshape(6)},
        {"weight": STATE["weight"] + torch.eye(2, 3) * 1e-6},
        {"bias": torch.zeros(3, dtype=torch.int32)},
        {"bias": -torch.zeros(3)},
        {"bias": torch.zeros(4)},
        {"extra": torch.zeros(0)},
    ],
    ids=["shape", "axes", "last digit", "type", "sign of zero", "size", "name"],
)
def test_the_digest_of_a_state_is_sensitive_to(change: dict[str, torch.Tensor]) -> None:
    assert digest_state({**STATE, **change}) != digest_state(STATE)


def test_swapping_the_values_of_two_names_changes_the_digest() -> None:
    one, two = {"a": torch.zeros(2), "b": torch.ones(2)}, {"a": torch.ones(2), "b": torch.zeros(2)}
    assert digest_state(one) != digest_state(two)


def test_a_state_survives_saving(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_state(path, {**STATE, "view": STATE["weight"].T, "half": torch.ones(2, dtype=torch.float16)})
    loaded = load_state(path)
    assert digest_state(loaded) == digest_state({**STATE, "view": STATE["weight"].T, "half": loaded["half"]})
    assert loaded["half"].dtype == torch.float16


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_state_is_one_clear_error(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_state(path, STATE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match="not a complete safetensors file") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)


def test_an_absent_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"weights\.safetensors: no such weights file"):
        load_state(tmp_path / "weights.safetensors")


def test_a_log_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_json_lines(log) == []
    for number in (1, 2):
        append_json_line(log, {"round": number})
    log.write_text(log.read_text() + '{"round": 3, "ph')
    assert read_json_lines(log) == [{"round": 1}, {"round": 2}]


def test_a_damaged_line_of_a_log_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"round": 1}\n{"round"\n{"round": 3}\n')
    with pytest.raises(FederationError, match=r"log\.jsonl: line 2 is not valid JSON"):
        read_json_lines(log)

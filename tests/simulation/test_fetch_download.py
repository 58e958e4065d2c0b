from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modaltune.errors import ConfigError, FetchError
from simulation.fetch.connection import ATTEMPTS, Connection
from simulation.fetch.download import download
from tests.simulation.fake_tcga import FakeTcga, Fault, serve

BODY = gzip.compress(bytes(range(256)) * 40 + b"end", mtime=0)
LONG = bytes(number % 251 for number in range(5000))


@pytest.fixture
def hub() -> Iterator[FakeTcga]:
    with serve(FakeTcga(cases=[], slides=[], files={"/file.gz": BODY, "/file.bin": LONG})) as fake:
        yield fake


@pytest.fixture
def connection() -> Connection:
    return Connection(backoff=0.001)


def quiet(done: int, total: int | None) -> None:
    pass


def ranges(hub: FakeTcga) -> list[str | None]:
    return [headers.get("Range") for _, headers in hub.requests]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_with_its_record(hub: FakeTcga, connection: Connection, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    source = download(connection, f"{hub.url}/file.gz", tmp_path / "file.gz", lambda *told: seen.append(told))
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert source.bytes == len(BODY)
    assert seen[-1] == (len(BODY), len(BODY))
    assert names(tmp_path) == ["file.gz", "file.gz.json"]
    assert hub.requests[0][1]["User-Agent"].startswith("modaltune-federated/")


def test_a_complete_file_is_verified_without_a_request(hub: FakeTcga, connection: Connection, tmp_path: Path) -> None:
    first = download(connection, f"{hub.url}/file.gz", tmp_path / "file.gz", quiet)
    assert download(connection, f"{hub.url}/file.gz", tmp_path / "file.gz", quiet) == first
    assert len(hub.requests) == 1


def test_a_file_that_was_damaged_later_is_fetched_again(hub: FakeTcga, connection: Connection, tmp_path: Path) -> None:
    download(connection, f"{hub.url}/file.gz", tmp_path / "file.gz", quiet)
    (tmp_path / "file.gz").write_bytes(BODY[:-1] + b"x")
    download(connection, f"{hub.url}/file.gz", tmp_path / "file.gz", quiet)
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert ranges(hub) == [None, None]


@settings(max_examples=8)
@given(cuts=st.lists(st.integers(0, 2500), max_size=4), keeps_ranges=st.booleans())
def test_wherever_the_line_drops_the_file_is_the_same(
    cuts: list[int], keeps_ranges: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    fake = FakeTcga(cases=[], slides=[], files={"/file.bin": LONG}, ranges=keeps_ranges)
    fake.faults["/file.bin"] = [Fault(cut=cut) for cut in cuts]
    with serve(fake):
        download(Connection(backoff=0.001), f"{fake.url}/file.bin", folder / "file.bin", quiet)
    assert (folder / "file.bin").read_bytes() == LONG


def test_only_the_rest_is_asked_for(hub: FakeTcga, connection: Connection, tmp_path: Path) -> None:
    hub.faults["/file.bin"] = [Fault(cut=1000), Fault(cut=500)]
    download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    assert ranges(hub) == [None, "bytes=1000-", "bytes=1500-"]
    assert (tmp_path / "file.bin").read_bytes() == LONG


def test_another_run_goes_on_where_the_first_stopped(hub: FakeTcga, connection: Connection, tmp_path: Path) -> None:
    hub.faults["/file.bin"] = [Fault(cut=1000), *[Fault(cut=0)] * ATTEMPTS]
    with pytest.raises(FetchError, match=f"broke off {ATTEMPTS} times without progress; run the same command again"):
        download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    assert names(tmp_path) == ["file.bin.json", "file.bin.part"]
    hub.requests.clear()
    download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    assert ranges(hub) == ["bytes=1000-"]
    assert (tmp_path / "file.bin").read_bytes() == LONG


@pytest.mark.parametrize("checks_if_range", [True, False])
def test_a_file_that_changed_between_attempts_is_not_glued(
    checks_if_range: bool, hub: FakeTcga, connection: Connection, tmp_path: Path
) -> None:
    hub.checks_if_range = checks_if_range
    hub.faults["/file.bin"] = [Fault(cut=1000), *[Fault(cut=0)] * ATTEMPTS]
    with pytest.raises(FetchError):
        download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    hub.files["/file.bin"] = LONG[::-1]
    download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    assert (tmp_path / "file.bin").read_bytes() == LONG[::-1]


def test_a_part_that_was_complete_when_the_run_died_is_not_asked_for_again(
    hub: FakeTcga, connection: Connection, tmp_path: Path
) -> None:
    source = download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")
    record = json.loads((tmp_path / "file.bin.json").read_text()) | {"sha256": None}
    (tmp_path / "file.bin.json").write_text(json.dumps(record))
    assert download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet) == source
    assert len(hub.requests) == 1


def test_a_part_longer_than_the_file_starts_anew(hub: FakeTcga, connection: Connection, tmp_path: Path) -> None:
    hub.faults["/file.bin"] = [Fault(cut=1000), *[Fault(cut=0)] * ATTEMPTS, Fault(status=416)]
    with pytest.raises(FetchError):
        download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    with (tmp_path / "file.bin.part").open("ab") as part:
        part.write(LONG + LONG)
    download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    assert (tmp_path / "file.bin").read_bytes() == LONG


@pytest.mark.parametrize(("s3", "problem"), [(True, "MD5 is"), (False, "not a complete gzip file")])
def test_a_wrong_checksum_leaves_nothing_and_the_next_run_is_fine(
    s3: bool, problem: str, hub: FakeTcga, connection: Connection, tmp_path: Path
) -> None:
    hub.s3 = s3
    hub.faults["/file.gz"] = [Fault(body=BODY[:30] + bytes([BODY[30] ^ 1]) + BODY[31:])]
    with pytest.raises(FetchError, match=rf"damaged on the way or at the source: {problem}.*removed"):
        download(connection, f"{hub.url}/file.gz", tmp_path / "file.gz", quiet)
    assert names(tmp_path) == ["file.gz.json"]
    download(connection, f"{hub.url}/file.gz", tmp_path / "file.gz", quiet)
    assert (tmp_path / "file.gz").read_bytes() == BODY


def test_a_gzip_file_that_is_short_at_the_source_is_refused(
    hub: FakeTcga, connection: Connection, tmp_path: Path
) -> None:
    hub.files["/file.gz"] = BODY[:-4]
    with pytest.raises(FetchError, match="not a complete gzip file"):
        download(connection, f"{hub.url}/file.gz", tmp_path / "file.gz", quiet)


def test_retry_after_is_honoured(hub: FakeTcga, connection: Connection, tmp_path: Path) -> None:
    hub.faults["/file.bin"] = [Fault(status=429, retry_after=1)]
    start = time.monotonic()
    download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    assert time.monotonic() - start >= 1
    assert len(hub.requests) == 2


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_two_failures_pass(status: int, hub: FakeTcga, connection: Connection, tmp_path: Path) -> None:
    hub.faults["/file.bin"] = [Fault(status=status)] * 2
    download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    assert len(hub.requests) == 3


def test_a_server_that_keeps_failing_is_given_up_in_one_line(
    hub: FakeTcga, connection: Connection, tmp_path: Path
) -> None:
    hub.faults["/file.bin"] = [Fault(status=503)] * 20
    with pytest.raises(FetchError, match=rf"file.bin: no answer in {ATTEMPTS} attempts \(too many 503 .*again later"):
        download(connection, f"{hub.url}/file.bin", tmp_path / "file.bin", quiet)
    assert len(hub.requests) == ATTEMPTS
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_not_asked_for_twice(hub: FakeTcga, connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"nothing.gz: refused with HTTP 404 Not Found; expected"):
        download(connection, f"{hub.url}/nothing.gz", tmp_path / "nothing.gz", quiet)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("base", ["nowhere", "ftp://host", "http://"])
def test_an_address_that_is_none_says_so(base: str, connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a web address; expected https://HOST"):
        download(connection, f"{base}/file.bin", tmp_path / "file.bin", quiet)


def test_nobody_listening_is_one_line(connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=rf"no answer in {ATTEMPTS} attempts .*refused"):
        download(connection, "http://127.0.0.1:9/file.bin", tmp_path / "file.bin", quiet)

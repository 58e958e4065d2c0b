"""Large files: resumed where they stopped, and complete, checked and hashed before they get their name.

Beside ``NAME`` lies ``NAME.json``, the record of where it came from. While bytes arrive they are in ``NAME.part``; a
later attempt asks for the rest only if the server still has the file with the same ETag.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import requests
import urllib3

from modaltune.errors import FetchError
from modaltune.storage import digest_file, write_json
from simulation.fetch.connection import ATTEMPTS, LATER, Connection

_CHUNK = 1 << 20

Say = Callable[[int, int | None], None]
"""Told of the bytes that are there, and of all bytes where the server says how many."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a file came from.

    Attributes:
        url: its address.
        etag: the server's mark of this version, None when it gives none that can be relied on.
        bytes: size that the server announced, None when it did not.
        md5: of the whole file, where the server gives it.
        sha256: of the whole file, None until it is complete.
    """

    url: str
    etag: str | None = None
    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None


class _BrokenOff(Exception):
    """The body ended early, or the server sent another part than the one asked for."""


def download(connection: Connection, url: str, path: Path, say: Say) -> Source:
    """Fetch a file unless it is there already, unchanged.

    Args:
        connection: used for every request.
        url: its address.
        path: where it goes; appears only when it is complete and checked.
        say: told of progress.
    Returns:
        Its record, with sha256.
    Raises:
        FetchError: no progress in several attempts, or the file does not match its checksum.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    record = _read_record(path)
    if record.url == url and record.sha256 is not None and path.is_file() and digest_file(path) == record.sha256:
        return record
    part = path.with_name(f"{path.name}.part")
    stuck = furthest = 0
    while True:
        try:
            source = _fetch_rest(connection, url, path, part, say)
            break
        except (urllib3.exceptions.HTTPError, _BrokenOff) as error:
            size = part.stat().st_size if part.is_file() else 0
            stuck = 0 if size > furthest else stuck + 1
            furthest = max(size, furthest)
            if stuck == ATTEMPTS:
                raise FetchError(f"{url}: broke off {ATTEMPTS} times without progress; {LATER}") from error
            connection.pause(stuck)
    _verify(part, source)
    complete = Source(**{**asdict(source), "bytes": part.stat().st_size, "sha256": digest_file(part)})
    write_json(_record_path(path), asdict(complete))
    os.replace(part, path)
    return complete


def _fetch_rest(connection: Connection, url: str, path: Path, part: Path, say: Say) -> Source:
    """Append what is missing to the part, or start it anew."""
    source = _read_record(path)
    start = part.stat().st_size if part.is_file() and source.url == url and source.etag and not source.sha256 else 0
    if start and start == source.bytes:
        return source
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": str(source.etag)}
    with connection.get(url, headers=headers) as answer:
        if answer.status_code == requests.codes.ok:
            start, source = 0, _announced(url, answer)
            part.unlink(missing_ok=True)
            write_json(_record_path(path), asdict(source))
        elif not _continues(answer, start, source):
            part.unlink(missing_ok=True)
            raise _BrokenOff
        _receive(answer, part, start, source.bytes, say)
    return source


def _receive(answer: requests.Response, part: Path, start: int, total: int | None, say: Say) -> None:
    size = start
    with part.open("ab") as stream:
        for chunk in answer.raw.stream(_CHUNK, decode_content=False):
            stream.write(chunk)
            size += len(chunk)
            say(size, total)
    if total is not None and size != total:
        raise _BrokenOff


def _continues(answer: requests.Response, start: int, source: Source) -> bool:
    """Whether an answer is the rest of the same version; If-Range should see to it, but proxies differ."""
    span = re.match(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    same = answer.headers.get("ETag", source.etag) == source.etag
    return answer.status_code == requests.codes.partial_content and same and span is not None and int(span[1]) == start


def _announced(url: str, answer: requests.Response) -> Source:
    etag, size = answer.headers.get("ETag"), answer.headers.get("Content-Length", "")
    strong = etag if etag and etag.startswith('"') else None
    return Source(url=url, etag=strong, bytes=int(size) if size.isdigit() else None, md5=_s3_md5(answer, strong))


def _s3_md5(answer: requests.Response, etag: str | None) -> str | None:
    """S3 uses the MD5 as ETag, except of files uploaded in pieces (``-``) or encrypted with a managed key."""
    mark = (etag or "").strip('"')
    plain = answer.headers.get("x-amz-server-side-encryption", "AES256") == "AES256"
    known = answer.headers.get("Server") == "AmazonS3" and plain and re.fullmatch(r"[0-9a-f]{32}", mark)
    return mark if known else None


def _verify(part: Path, source: Source) -> None:
    """Compare with the server's MD5, and read a gzip file to its end: it carries a checksum of its content."""
    problem = ""
    if source.md5 is not None:
        with part.open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        problem = "" if found == source.md5 else f"MD5 is {found}, but the server announced {source.md5}"
    if not problem and source.url.endswith(".gz"):
        try:
            with gzip.open(part) as stream:
                while stream.read(_CHUNK):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            problem = f"not a complete gzip file ({error})"
    if problem:
        part.unlink()
        raise FetchError(
            f"{source.url}: damaged on the way or at the source: {problem}; removed, run the command again"
        )


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_record(path: Path) -> Source:
    """The record, or an empty one when it is absent or unreadable: then nothing there can be relied on."""
    try:
        return Source(**json.loads(_record_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Source(url="")

"""A local server with answers of the same shape as the GDC API and the Xena hub, and faults on demand."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

PAGE = 25
"""The server sends smaller pages than asked for."""
CENTRES = {"BH": "University North", "E2": "University North", "A2": "Harbour Hospital", "D8": "Lake Clinic"}
GENES = [f"GENE{number}" for number in range(40)]


def barcode(number: int) -> str:
    return f"TCGA-{list(CENTRES)[number % 4]}-A{number:03d}"


def case(number: int, project: str = "TCGA-BRCA") -> dict[str, Any]:
    """A case as /cases gives it; three of five died, times in days."""
    died = number % 5 in (0, 2, 3)
    code = barcode(number)[5:7]
    diagnosis = {
        "submitter_id": f"{barcode(number)}_diagnosis",
        "diagnosis_is_primary_disease": True,
        "classification_of_tumor": "primary",
        "primary_diagnosis": "Lobular carcinoma, NOS" if number % 3 == 0 else "Infiltrating duct carcinoma, NOS",
        "morphology": "8520/3" if number % 3 == 0 else "8500/3",
        "ajcc_pathologic_stage": ("Stage I", "Stage IIA", "Stage IIIC", "Stage IV")[number % 4],
        "age_at_diagnosis": 20000 + number,
    }
    demographic = {"vital_status": "Dead" if died else "Alive", "age_at_index": 40 + number % 40}
    demographic |= {"sex_at_birth": "female"} if number % 2 else {"gender": "female"}
    demographic |= {"days_to_death": 400 + 10 * number} if died else {}
    return {
        "id": f"uuid-{number}",
        "submitter_id": barcode(number),
        "project": {"project_id": project, "name": "Breast Invasive Carcinoma"},
        "tissue_source_site": {"code": code, "name": CENTRES[code]},
        "demographic": demographic,
        "diagnoses": [diagnosis],
        "follow_ups": [{"days_to_follow_up": 100 + number}, {"days_to_follow_up": 365.25 * 4 + number}],
    }


def slide(number: int, kind: str = "01Z-00-DX1") -> dict[str, Any]:
    name = f"{barcode(number)}-{kind}.1B2F-{number}.svs"
    digest = hashlib.md5(name.encode()).hexdigest()
    return {
        "file_id": f"file-{number}-{kind}",
        "file_name": name,
        "file_size": 10**9 + number,
        "md5sum": digest,
        "cases": [{"project": {"project_id": "TCGA-BRCA"}}],
    }


def matrix(samples: list[str], genes: list[str], seed: int = 0) -> bytes:
    """A HiSeqV2 matrix: header of samples, then a gene a line."""
    values = np.random.default_rng(seed).normal(8, 2, size=(len(genes), len(samples))).clip(0)
    lines = ["\t".join(["sample", *samples])]
    lines += ["\t".join([gene, *(f"{value:.4f}" for value in row)]) for gene, row in zip(genes, values, strict=True)]
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def brca_samples(cases: int) -> list[str]:
    """A primary sample a case; case 1 has a second one, listed first, case 2 a normal one; case 3 has only a normal."""
    primary = [f"{barcode(number)}-01" for number in range(cases) if number not in (1, 3)]
    extra = [f"{barcode(1)}-01B", f"{barcode(1)}-01A", f"{barcode(2)}-11", f"{barcode(3)}-11", f"{barcode(4)}-06"]
    return extra + primary


@dataclass
class Fault:
    """What happens instead of a proper answer.

    Attributes:
        status: answer with this status and nothing else.
        retry_after: seconds, as header.
        cut: stop after so many bytes of the body.
        body: send this in place of the body, under the headers of the true one.
    """

    status: int | None = None
    retry_after: int | None = None
    cut: int | None = None
    body: bytes | None = None


@dataclass
class FakeTcga:
    """What the server serves, and what it was asked."""

    cases: list[dict[str, Any]]
    slides: list[dict[str, Any]]
    files: dict[str, bytes]
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    ranges: bool = True
    checks_if_range: bool = True
    s3: bool = True
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


def breast_cohort(cases: int = 60) -> FakeTcga:
    records = [case(number) for number in range(cases)]
    slides = [slide(number) for number in range(cases - 5)]
    slides += [slide(0, "01Z-00-DX2"), slide(1, "06Z-00-DX1"), slide(2, "01A-01-TS1")]
    files = {"/download/TCGA.BRCA.sampleMap/HiSeqV2.gz": matrix(brca_samples(cases), [*GENES, "GENE0"])}
    return FakeTcga(cases=records, slides=slides, files=files)


@contextmanager
def serve(fake: FakeTcga) -> Iterator[FakeTcga]:
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeTcga
    protocol_version = "HTTP/1.1"

    def version_string(self) -> str:
        return "AmazonS3" if self.fake.s3 else "Test"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.fake.requests.append((path, dict(self.headers)))
        queue = self.fake.faults.get(path, [])
        fault = queue.pop(0) if queue else Fault()
        if fault.status is not None:
            extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            self.answer(fault.status, b"", extra, Fault())
        elif path in self.fake.files:
            self.file(self.fake.files[path], fault)
        elif path in ("/status", "/cases", "/files"):
            self.answer(200, json.dumps(self.document(path, parse_qs(parts.query))).encode(), {}, fault)
        else:
            self.answer(404, b"", {}, Fault())

    def document(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        if path == "/status":
            return {"data_release": "Data Release 45.0 - December 04, 2025", "status": "OK", "version": 1}
        filters, start = json.loads(query["filters"][0]), int(query["from"][0])
        records = self.fake.cases if path == "/cases" else self.fake.slides
        found = sorted(
            (record for record in records if _matches(record, filters)), key=lambda one: one[query["sort"][0][:-4]]
        )
        size = min(PAGE, int(query["size"][0]))
        hits = [_only(record, query["fields"][0].split(",")) for record in found[start : start + size]]
        page = {"count": len(hits), "total": len(found), "size": size, "from": start}
        return {"data": {"hits": hits, "pagination": page}, "warnings": {}}

    def file(self, body: bytes, fault: Fault) -> None:
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        asked = self.headers.get("Range") if self.fake.ranges else None
        changed = self.fake.checks_if_range and self.headers.get("If-Range", etag) != etag
        if asked is None or changed:
            self.answer(200, body, {"ETag": etag}, fault)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.answer(206, body[start:], {"ETag": etag, "Content-Range": span}, fault)

    def answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = body if fault.body is None else fault.body
        self.wfile.write(sent if fault.cut is None else sent[: fault.cut])
        if fault.cut is not None:
            self.close_connection = True


def _matches(record: dict[str, Any], filters: dict[str, Any]) -> bool:
    """Only the project decides here; the other conditions are what the server's slides all fulfil."""
    conditions = filters["content"] if filters["op"] == "and" else [filters]
    project = record.get("project") or record["cases"][0]["project"]
    return all(
        project["project_id"] in one["content"]["value"]
        for one in conditions
        if one["content"]["field"].endswith("project.project_id")
    )


def _only(value: Any, fields: list[str]) -> Any:
    """What GDC leaves of a record when some fields are asked for."""
    if isinstance(value, list):
        return [_only(one, fields) for one in value]
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    for name, inner in value.items():
        below = [one.partition(".")[2] for one in fields if one.startswith(f"{name}.")]
        if below:
            kept[name] = _only(inner, below)
        elif name in fields:
            kept[name] = inner
    return kept

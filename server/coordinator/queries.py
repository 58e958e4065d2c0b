"""Label queries of a finished run: submitted to the SuperLink, waited for, written into the run folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from modaltune.errors import ConfigError, RunFailed
from modaltune.federation.study import Study
from modaltune.storage import write_json, write_text
from server.coordinator.bundle import build_bundle
from server.coordinator.home import Home
from server.coordinator.journal import journal
from server.coordinator.link import connected
from server.coordinator.runs import find_run, require_idle
from server.coordinator.sites import admitted_nodes
from server.label_query import ANSWER_FILE, QUERY_FILE, Asked

_POLL_SECONDS = 1.0


def ask(home: Home, name: str, asked: Asked) -> dict[str, Any]:
    """Ask the hospitals of a run how candidate texts divide their cases.

    Raises:
        ConfigError: the run is not finished, or its study does not allow the query.
        RunFailed: no hospital answered.
    """
    run = find_run(home, name)
    if not run.done:
        raise ConfigError(f"run {name} is not finished; a label query is about the model of a finished run")
    study = Study.load(run.study)
    query = asked.embedded(study)
    folder = _new_folder(run.folder / "queries", asked.name)
    bundle, nodes = build_bundle(), admitted_nodes(home)
    write_text(folder / QUERY_FILE, asked.model_dump_json(indent=1) + "\n")
    write_json(folder / "nodes.json", {site: nodes[site] for site in study.roster if site in nodes})
    config = {"study": run.study, "out": run.folder, "nodes": folder / "nodes.json", "home": home.folder}
    with connected(home) as link:
        require_idle(home, link)
        number = link.start(bundle, {key: str(path) for key, path in (config | {"query": folder}).items()})
        facts = {"run": run.name, "study": study.digest, "label_query": query.digest, "bundle": bundle.sha256}
        journal(home).append("label-query", **facts, candidates=len(asked.texts), flower=str(number))
        while not link.run(number).finished:
            time.sleep(_POLL_SECONDS)
    if not (folder / ANSWER_FILE).is_file():
        raise RunFailed(f"label query {folder.name}: {_reason(folder)}; see {folder} and the hospitals' logs")
    return dict(json.loads((folder / ANSWER_FILE).read_text(encoding="utf-8"))) | {"folder": str(folder)}


def _new_folder(parent: Path, name: str) -> Path:
    number = 1
    while (folder := parent / f"{name}-{number}").exists():
        number += 1
    return folder


def _reason(folder: Path) -> str:
    status = folder / "status.json"
    said = json.loads(status.read_text(encoding="utf-8")).get("reason") if status.is_file() else None
    return str(said or "it ended without an answer")

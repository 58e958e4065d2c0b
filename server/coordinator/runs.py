"""Runs: submitted to the SuperLink, followed through the files that the ServerApp writes, resumed after a crash."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modaltune.errors import ConfigError, FederationError, RunFailed
from modaltune.federation.study import Study
from modaltune.storage import read_json_lines, write_json, write_text
from server.aggregation import check_rule
from server.alone import alone
from server.coordinator.bundle import build_bundle
from server.coordinator.home import Home
from server.coordinator.journal import journal
from server.coordinator.link import Link, connected
from server.coordinator.sites import admitted_nodes

RUNNING = "RUNNING"
_POLL_SECONDS, _GRACE_SECONDS, _RESTART_SECONDS = 1.0, 5.0, 180.0
_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def study(self) -> Path:
        return self.folder / "study.json"

    @property
    def nodes(self) -> Path:
        """Site -> node id of the sites that the ServerApp may talk to."""
        return self.folder / "nodes.json"

    @property
    def absent(self) -> list[str]:
        """Sites of the roster that were not admitted when the run was submitted."""
        return [site for site in Study.load(self.study).roster if site not in (_read_json(self.nodes) or {})]

    @property
    def log(self) -> Path:
        """What the ServerApp printed, kept when it ended without a result."""
        return self.folder / "serverapp.log"

    @property
    def submissions(self) -> list[dict[str, Any]]:
        """One entry each time that the run was handed to Flower: its number there (None = not yet), bundle and time."""
        found = _read_json(self.folder / "run.json")
        return list(found["submissions"]) if found else []

    @property
    def status(self) -> dict[str, Any]:
        """What the ServerApp last said of itself."""
        return _read_json(self.folder / "status.json") or {"status": RUNNING, "phase": "submitted"}

    @property
    def summary(self) -> dict[str, Any]:
        """What the hospitals said of themselves, and how the run ended; empty before its end."""
        return _read_json(self.folder / "summary.json") or {}

    def metrics(self) -> list[dict[str, Any]]:
        """Metric rows; none before the end."""
        path = self.folder / "metrics.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []

    @property
    def done(self) -> bool:
        """Whether model, metrics and report are complete; they are written after the last status."""
        return (self.folder / "DONE").is_file()

    @property
    def final(self) -> bool:
        """Whether the ServerApp came to an end that it could write down."""
        status = self.status["status"]
        return status == "FAILED" or (status != RUNNING and self.done)

    def rounds(self) -> list[dict[str, Any]]:
        """The round log; a line that is being written does not count."""
        return read_json_lines(self.folder / "rounds.jsonl")


def find_run(home: Home, name: str) -> Run:
    """The run called ``name``.

    Raises:
        ConfigError: there is none.
    """
    runs = all_runs(home)
    for run in runs:
        if run.name == name:
            return run
    if os.sep in name:
        raise ConfigError(f"{name}: no such run folder")
    home.settings()  # says what to do where there is no coordinator
    raise ConfigError(f"no run {name!r} in {home.runs}; known: {', '.join(run.name for run in runs) or 'none'}")


def all_runs(home: Home) -> list[Run]:
    """All runs, the one submitted last at the end."""
    found = [Run(path.parent) for path in home.runs.glob("*/run.json")]
    return sorted(found, key=lambda run: str(run.submissions[-1]["time"]))


def start_run(home: Home, study_file: Path, name: str | None) -> Run:
    """Submit a study as a new run.

    Raises:
        ConfigError: the name is taken, or too few sites of the roster are admitted.
        FederationError: the services do not run, or another run is going on.
    """
    home.settings()
    study = Study.load(study_file)
    check_rule(study)
    _require_quorum(study, admitted_nodes(home))
    name = name or f"{study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if not set(name) <= set(_NAME) or name.startswith("."):
        raise ConfigError(f"run name {name!r}: use letters, digits, '-', '_' and '.'")
    run = Run(home.runs / name)
    if run.folder.exists():
        raise ConfigError(
            f"{run.folder}: exists; choose another --name, or go on with it: modaltune-server resume {name}"
        )
    with connected(home) as link:
        require_idle(home, link)
        run.folder.mkdir(parents=True)
        try:
            write_text(run.study, study.to_json())
            _submit(home, link, run, study)
        finally:
            if not run.submissions:  # not handed to Flower: the name stays free
                shutil.rmtree(run.folder)
    return run


def resume_run(home: Home, name: str) -> Run:
    """Submit a run again; it goes on after the last round whose state is on disk.

    Raises:
        ConfigError: it is finished.
        FederationError: the services do not run, or it is still going on.
    """
    run = find_run(home, name)
    if run.done:
        raise ConfigError(f"run {name} is finished; its result is in {run.folder}")
    study = Study.load(run.study)
    _require_quorum(study, admitted_nodes(home))
    with connected(home) as link:
        require_idle(home, link)
        _submit(home, link, run, study)
    return run


def cancel_run(home: Home, name: str) -> Run:
    """End a run that is going on; its finished rounds stay, so that it can be resumed.

    Raises:
        ConfigError: it has ended.
        FederationError: the services do not run, or the ServerApp does not end.
    """
    run = find_run(home, name)
    with connected(home) as link:
        flower = _number(home, link, run)
        if run.final or flower is None or link.run(flower).finished:
            raise ConfigError(f"run {name} is not going on; modaltune-server status says how it ended")
        link.stop(flower)
    with alone(run.folder):
        if run.done:
            raise ConfigError(f"run {name} finished before it could be cancelled; its result is in {run.folder}")
        write_json(run.folder / "status.json", run.status | {"status": "FAILED", "reason": "cancelled"})
    journal(home).append("run-cancelled", run=run.name, flower=str(flower))
    return run


def going_on(home: Home, link: Link) -> Run | None:
    """The run that Flower works on now."""
    for run in reversed(all_runs(home)):
        flower = None if run.final else _number(home, link, run)
        if flower is not None and not link.run(flower).finished:
            return run
    return None


def follow(home: Home, run: Run, say: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Wait for the end of a run, telling each new row of its round log; returns its final status.

    Raises:
        RunFailed: it ended without a model; the line says how to go on.
    """
    told, since = len(run.rounds()) if len(run.submissions) > 1 else 0, None
    while True:
        final = run.final  # looked at first: what was written before it is then there to be told
        rows = run.rounds()
        for row in rows[told:]:
            say(row)
        told = len(rows)
        if final:
            return _ended(run)
        trouble = trouble_of(home, run)
        since = None if trouble is None else since or time.monotonic()
        if trouble is not None and since is not None and time.monotonic() - since > trouble.patience:
            raise RunFailed(f"run {run.name}: {trouble.what}; go on with: modaltune-server resume {run.name}")
        time.sleep(_POLL_SECONDS)


def _ended(run: Run) -> dict[str, Any]:
    status = run.status
    if status["status"] == "FAILED":
        reason = str(status.get("reason") or "no reason given").rstrip(".")
        raise RunFailed(f"run {run.name}: {reason}; to go on: modaltune-server resume {run.name}")
    return status


@dataclass(frozen=True)
class Trouble:
    """Why no end of a run is to be expected, and for how many seconds that may still change."""

    what: str
    patience: float


def trouble_of(home: Home, run: Run) -> Trouble | None:
    """What keeps an unfinished run from its end; None while Flower works on it."""
    try:
        with connected(home) as link:
            flower = _number(home, link, run)
            if flower is None:
                return Trouble("it did not reach Flower", _GRACE_SECONDS)
            found = link.run(flower)
            if not found.finished:
                return None
            said = _keep_log(run, link.log(flower)) if found.known else f"see {run.log}"
    except FederationError:  # supervised: it comes back, unless somebody stopped the services
        return Trouble("the SuperLink does not answer, see modaltune-server status", _RESTART_SECONDS)
    outcome = found.outcome or "ended"
    return Trouble(f"the ServerApp ended without a result (Flower says: {outcome}), {said}", _GRACE_SECONDS)


def _keep_log(run: Run, text: str) -> str:
    """Keep what a ServerApp printed; says where, or why it could not be kept, as on a full disk."""
    try:
        write_text(run.log, text)
    except OSError as problem:
        return f"{run.log} cannot be written ({problem.strerror})"
    return f"see {run.log}"


def _submit(home: Home, link: Link, run: Run, study: Study) -> None:
    bundle, nodes = build_bundle(), admitted_nodes(home)
    write_json(run.nodes, {site: nodes[site] for site in study.roster if site in nodes})
    write_json(run.folder / "status.json", {"status": RUNNING, "phase": "submitted"})
    config = {"study": run.study, "out": run.folder, "nodes": run.nodes, "home": home.folder}
    before = [entry for entry in run.submissions if entry["flower"] is not None]
    entry = {"flower": None, "bundle": bundle.sha256, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    _write_submissions(run, study, [*before, entry])  # whoever is killed before the number is known leaves a trace
    try:
        flower = link.start(bundle, {name: str(path) for name, path in config.items()})
    except Exception:
        _write_submissions(run, study, before)
        raise
    _submitted(home, run, flower)


def _submitted(home: Home, run: Run, flower: int) -> None:
    """Write down, in the audit log first, which number Flower gave to the last submission."""
    study, (*before, last) = Study.load(run.study), run.submissions
    event = "run-resumed" if before else "run-started"
    journal(home).append(event, run=run.name, study=study.digest, bundle=last["bundle"], flower=str(flower))
    _write_submissions(run, study, [*before, last | {"flower": flower}])


def _write_submissions(run: Run, study: Study, entries: Sequence[Mapping[str, Any]]) -> None:
    write_json(run.folder / "run.json", {"study": study.digest, "submissions": list(entries)})


def _number(home: Home, link: Link, run: Run) -> int | None:
    """Flower's number of the last submission, found there if nobody lived to write it down; None = it has none."""
    known = [entry["flower"] for entry in run.submissions]
    if known[-1] is None:
        for flower in link.runs_into(run.folder):
            if flower not in known:
                _submitted(home, run, flower)
                return flower
    return None if known[-1] is None else int(known[-1])


def _require_quorum(study: Study, nodes: Mapping[str, int]) -> None:
    absent = [site for site in study.roster if site not in nodes]
    if len(study.roster) - len(absent) < study.quorum:
        raise ConfigError(
            f"study {study.name}: quorum {study.quorum} cannot be met, not admitted: {', '.join(absent)}; invite and"
            " admit them first"
        )


def require_idle(home: Home, link: Link) -> None:
    """Refuse while a run is going on."""
    other = going_on(home, link)
    if other is not None:
        raise FederationError(f"run {other.name} is going on; wait for its end: modaltune-server status")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes())) if path.is_file() else None
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: damaged; put it back from a backup, or move the run's folder away") from None

"""A model that leaves the coordinator: copy of a run's model, a model card, one signature over both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from modaltune.errors import ConfigError, ModelFileError
from modaltune.federation.study import Study
from modaltune.storage import digest_state, load_state, write_text
from modaltune.trust.keys import SigningKey, fingerprint
from modaltune.trust.release import sign_folder
from server.coordinator.home import Home
from server.coordinator.journal import journal
from server.coordinator.runs import Run, find_run

CARD = "MODEL_CARD.md"


def release(home: Home, name: str, out: Path | None) -> Path:
    """Write a signed model folder and return it.

    Raises:
        ConfigError: the run is not finished, or the folder exists.
    """
    run = find_run(home, name)
    if not run.done:
        raise ConfigError(f"run {name} is not finished; only a finished run has a model to release")
    folder = out or home.releases / name
    if folder.exists():
        raise ConfigError(f"{folder}: exists and is not overwritten; choose another --out")
    weights = digest_state(load_state(run.folder / "model" / "weights.safetensors"))
    if weights != run.status.get("weights"):
        raise ModelFileError(f"{run.folder / 'model'}: its weights are not those that the run ended with; not released")
    key = SigningKey.load(home.signing_key)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run.folder / "model", partial)
    write_text(partial / CARD, model_card(run))
    sign_folder(partial, key)
    partial.replace(folder)
    facts = {"run": name, "study": Study.load(run.study).digest, "weights": weights}
    journal(home).append("model-released", **facts, key=fingerprint(key.public_pem))
    return folder


def model_card(run: Run) -> str:
    """Markdown: what the model is, who trained it, how it scored, what it is not for."""
    study = Study.load(run.study)
    rows = [row for row in run.rounds() if row["phase"] == "train"]
    degraded = [row["round"] for row in rows if row["status"] != "OK"]
    sites = sorted({site for row in rows for site in row["contributors"]})
    lines = [
        f"# {study.name}",
        "",
        "Research use only: not a medical device, not for decisions about patients.",
        "",
        f"- Study digest: `{study.digest}`",
        f"- Tasks: {', '.join(f'{task.name} ({task.kind})' for task in study.tasks)}",
        f"- Slide encoder: {study.slides.encoder}, text encoder: {study.text.encoder}; both frozen, named by hash in"
        " `study.json`, not part of this folder",
        f"- Trained in {len(rows)} rounds by {len(sites)} hospitals: {', '.join(sites)}",
        f"- Status of the run: {run.status['status']}"
        + (f"; rounds with a hospital missing or refused: {', '.join(map(str, degraded))}" if degraded else ""),
        "",
        "## Scores on test cases of the hospitals",
        "",
        *_metrics(run.folder / "metrics.json"),
        "",
        "## Limits",
        "",
        "- Scores hold for patients like those of the hospitals above, with their scanners, stains and follow-up.",
        "- Counts below "
        f"{study.privacy.min_cell} were suppressed at the hospitals; trained weights may still carry traces of"
        " training cases.",
    ]
    return "\n".join(lines) + "\n"


def _metrics(path: Path) -> list[str]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    found = [row for row in rows if row["method"] == "federated"]
    if not found:
        return ["No score was computed in this run."]
    head = ["| hospital | task | metric | value | 95 % | cases |", "|---|---|---|---|---|---|"]
    return [*head, *map(_metric_row, found)]


def _metric_row(row: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    interval = "" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"
    return f"| {row['hospital']} | {row['task']} | {row['metric']} | {number(row['value'])} | {interval} | {row['n']} |"

"""A model that leaves the coordinator: copy of a run's model, a model card, one signature over both.

The release gate (:mod:`server.release_gate`) may refuse; an override is written into audit log, card and signature.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError, ModelFileError, ReleaseRefused
from modaltune.federation.study import Study
from modaltune.storage import digest_folder, write_json, write_text
from modaltune.trust.keys import SigningKey, fingerprint
from modaltune.trust.release import sign_folder
from server.coordinator.card import model_card
from server.coordinator.home import Home
from server.coordinator.journal import journal
from server.coordinator.runs import Run, find_run
from server.release_gate import Verdict, judge
from server.report_data import read_table

CARD, GATE = "MODEL_CARD.md", "release_gate.json"


def release(home: Home, name: str, out: Path | None, override: str = "") -> Path:
    """Write a signed model folder and return it.

    Args:
        name: of a run, or the folder of a finished run, a simulation's for instance.
        override: why the model is to be released although the gate refuses it.
    Raises:
        ConfigError: the run is not finished, or the folder exists.
        ReleaseRefused: its test scores speak against it, and there is no override.
    """
    run = Run(Path(name)) if os.sep in name else find_run(home, name)
    if not run.done:
        raise ConfigError(f"run {name} is not finished; only a finished run has a model to release")
    folder = out or home.releases / run.name
    if folder.exists():
        raise ConfigError(f"{folder}: exists and is not overwritten; choose another --out")
    if digest_folder(run.folder / "model") != run.status.get("model"):
        raise ModelFileError(f"{run.folder / 'model'}: not the model that the run ended with; not released")
    weights = run.status["weights"]
    rows = run.metrics()
    verdict = assess(run, rows)
    override = " ".join(override.split()) if verdict.problems else ""
    facts = {"run": run.name, "study": Study.load(run.study).digest, "weights": weights}
    if verdict.problems and not override:
        journal(home).append("release-refused", **facts, problems=list(verdict.problems))
        raise ReleaseRefused(
            f"run {run.name} is not released: {'; '.join(verdict.problems)}; to release it all the same, say why:"
            ' --override "REASON"'
        )
    key = SigningKey.load(home.signing_key)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run.folder / "model", partial)
    write_text(partial / CARD, model_card(run, rows, verdict, override))
    write_json(partial / GATE, _document(verdict, override))
    sign_folder(partial, key, override=override)
    overridden = {"override": override, "problems": list(verdict.problems)} if override else {}
    journal(home).append("model-released", **facts, key=fingerprint(key.public_pem), **overridden)
    partial.replace(folder)  # last: no release that the log does not know
    return folder


def assess(run: Run, rows: list[dict[str, Any]]) -> Verdict:
    """What the release gate says about a finished run."""
    preprocessing = run.folder / "preprocessing.json"
    return judge(
        Study.load(run.study),
        rows,
        Preprocessing.from_json(preprocessing.read_text(encoding="utf-8")) if preprocessing.is_file() else None,
        read_table(run.folder / "predictions.parquet"),
    )


def _document(verdict: Verdict, override: str) -> dict[str, Any]:
    return {
        "problems": list(verdict.problems),
        "override": override,
        "not_assessed": list(verdict.not_assessed),
        "comparisons": [asdict(found) for found in verdict.comparisons],
    }

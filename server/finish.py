"""What a finished run leaves for people: metrics, summary, report; ``DONE`` comes last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modaltune.federation.manifest import reported_metrics
from modaltune.federation.study import Study
from modaltune.storage import read_json_lines, write_json, write_text
from modaltune.versions import installed_versions
from server.evaluation import Evaluation
from server.report import write_report
from server.report_data import SUMMED
from server.rounds import Result

DONE = "DONE"


def finish(result: Result, study: Study, out: Path) -> None:
    """Write metrics, summary, the sums of counts where hospitals sent any, the report, and last ``DONE``."""
    write_json(out / "metrics.json", list(metric_rows(result.evaluation, study)))
    if summed := result.evaluation.summed:
        write_json(out / SUMMED, summed)
    write_json(out / "summary.json", _summary(result, study, out))
    write_report(out)
    write_text(out / DONE, f"{result.status}\n")


def metric_rows(evaluation: Evaluation, study: Study) -> Iterator[dict[str, Any]]:
    """Rows of the metrics that the sites reported on their own test cases, and of everybody's from their counts.

    ``events`` None = too few to be told.
    """
    for row in evaluation.together:
        yield {"method": "federated", "hospital": "all", "seed": study.seed, **row}
    for site, found in evaluation.metrics.items():
        for task in study.tasks:
            for metric in reported_metrics(study, task):
                parts = {part: found.get(f"{task.name}.{metric}.{part}") for part in ("value", "low", "high", "n")}
                events = found.get(f"{task.name}.{metric}.events")
                if parts["value"] is not None and parts["n"] is not None:
                    yield {
                        "method": "federated",
                        "task": task.name,
                        "metric": metric,
                        "hospital": site,
                        **parts,
                        "n": int(parts["n"]),
                        "seed": study.seed,
                        "events": None if events is None else int(events),
                    }


def _summary(result: Result, study: Study, out: Path) -> dict[str, Any]:
    rows = read_json_lines(out / "rounds.jsonl")
    sites = {}
    for site, found in result.capabilities.items():
        counts = {"train": found.train_cases, "val": found.val_cases, "test": found.test_cases}
        sites[site] = {
            "cases": sum(counts.values()),
            **counts,
            "tasks": list(found.tasks),
            "modalities": list(found.modalities),
            "patches": found.patches.told(),
        }
    return {
        "title": study.name,
        "status": result.status,
        "sites": sites,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "digest": study.digest,
        "weights": result.weights_hash,
        "budget": {"steps": result.steps},
        "seeds": [study.seed],
        "versions": installed_versions(),
        "command": "modaltune-server run RUN_FOLDER/study.json",
    }

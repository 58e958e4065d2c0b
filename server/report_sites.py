"""One section a hospital: what it has, what it did, and what the models do on its own test cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.report_context import cells, signed
from server.report_data import CORE_METHODS, RunData, by_method, metric_title, number, task_metrics
from server.report_forest import p_text

_COUNTS = (("train", "training"), ("val", "validation"), ("test", "test"))


def site_sections(run: RunData) -> list[dict[str, Any]]:
    """What the page says about each hospital, in the order of the roster."""
    return [
        {
            "name": name,
            "anchor": f"hospital-{index}",
            "sentences": _sentences(run, name),
            **_scores(run, name),
        }
        for index, name in enumerate(run.hospitals, start=1)
    ]


def _sentences(run: RunData, name: str) -> list[str]:
    found: Mapping[str, Any] = run.summary.get("sites", {}).get(name, {})
    said = []
    counts = [f"{found[key]:,} {text}" for key, text in _COUNTS if isinstance(found.get(key), int)]
    if counts:
        said.append(f"Cases: {', '.join(counts)}.")
    for key, text in (("tasks", "Labels"), ("modalities", "Inputs")):
        if found.get(key):
            said.append(f"{text}: {', '.join(found[key])}.")
    rounds = run.training
    if rounds:
        there = sum(name in (row.get("contributors") or ()) for row in rounds)
        steps = sum(int((row.get("steps") or {}).get(name, 0)) for row in rounds)
        said.append(f"It took part in {there} of {len(rounds)} rounds" + (f" with {steps:,} steps." if steps else "."))
    return said


def _scores(run: RunData, name: str) -> dict[str, Any]:
    """Every metric on the hospital's own test cases, with the paired difference from its own model."""
    differences = {
        (row["task"], row["metric"]): row for row in run.comparisons if row["hospital"] == name and row["b"] == "local"
    }
    here = {key: score for key, score in run.scores.items() if key.hospital == name and score.value is not None}
    methods = [method for method in CORE_METHODS[:3] if any(key.method == method for key in here)]
    rows = []
    for task, metric in task_metrics(here):
        row = differences.get((task, metric), {})
        known = number(row.get("difference")) is not None
        interval = f"{signed(row['low'])} to {signed(row['high'])}" if known and row["low"] is not None else ""
        rows.append(
            {
                "task": task,
                "metric": metric_title(metric),
                "cells": cells(methods, by_method(here, task, metric, name)),
                "difference": signed(row["difference"]) if known else "–",
                "interval": f"{interval}, p {p_text(row['p'])}" if interval else "",
            }
        )
    return {"methods": methods, "rows": rows, "paired": bool(differences)}

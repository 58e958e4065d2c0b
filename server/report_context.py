"""Sentences and tables of the report, as plain values for the template."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.report_data import (
    CORE_METHODS,
    MIN_GAP,
    SUMMED,
    RunData,
    Score,
    by_method,
    gain,
    gap_closed,
    headline,
    main_metrics,
    metric_title,
    order_methods,
    task_metrics,
)

_FINGERPRINTED = (
    *("study.json", "preprocessing.json", "metrics.json", "comparisons.json", "influence.json"),
    *("rounds.jsonl", SUMMED, "summary.json"),
)
_METHOD_MEANINGS = {
    "local": "one model a hospital, trained on its own cases only, with as many optimiser steps as the federation. "
    "On everybody's test cases: the mean over the hospitals' models",
    "federated": "one model trained by all hospitals together; no case leaves a hospital",
    "pooled": "one model trained on all cases in one place: what sharing the data would give",
    "linear_local": "linear model on the same inputs, one a hospital",
    "linear": "linear model on the same inputs, all cases in one place",
    "separate_heads": "federated, with one output layer a task instead of the shared text space",
    "per_task": "federated, one federation of its own a task",
    "per_task_same_cost": "the same with fewer rounds, so that hospitals exchange as many models as for one federation",
    "personalised": "the federated model, trained further by each hospital on its own cases only",
    "untrained": "probes on the embeddings of the model before it is trained",
    "texts_alone": "federated without the only hospital that labels the task, scored by the task's texts",
}
_BASELINE_SUFFIXES = {
    "local": "one model a hospital",
    "federated": "trained by all hospitals together",
    "pooled": "all cases in one place",
}

Table = dict[str, Any]


def lead(run: RunData) -> list[str]:
    """The plain summary at the top: what was done, what came out, and what went wrong."""
    sentences = [_what_was_done(run)]
    results = [text for task, metric in main_metrics(run.together) if (text := _result(run, task, metric))]
    if results:
        sentences.append("On the test cases of all hospitals together: " + "; ".join(results) + ".")
        sentences += _counted(run)
    elif run.status == "FAILED":
        sentences += ["The run ended without a model that could be scored.", *map(str, run.summary.get("notes") or [])]
    else:
        sentences.append("No method was scored on the test cases of all hospitals together.")
    sentences += _verdict(run)
    trouble = incidents(run)
    if run.status != "OK" and trouble:
        names = list(dict.fromkeys(name for row in trouble for name in row["names"]))
        sentences.append(
            f"The run is {run.status} because of {_count(len(trouble), 'round')} in which "
            f"{_join(names)} did not contribute; the list is under “Training”."
        )
    return sentences


def facts(run: RunData) -> list[tuple[str, str]]:
    """The figures in the header: value and what it counts."""
    test = [site.get("test") for site in run.summary.get("sites", {}).values()]
    counted = [n for n in test if isinstance(n, int)]
    total = sum((row.get("bytes_down") or 0) + (row.get("bytes_up") or 0) for row in run.rounds)
    found = [
        (str(len(run.hospitals)), "hospitals" if len(run.hospitals) != 1 else "hospital"),
        (str(len(run.tasks)), "tasks" if len(run.tasks) != 1 else "task"),
        (str(len(run.training)), "training rounds"),
        (f"{sum(counted):,}" if counted and len(counted) == len(test) else "", "test cases"),
        (megabytes(total) if total else "", "sent in all"),
        (duration(run.summary.get("seconds")), "in all"),
    ]
    return [(value, name) for value, name in found if value]


def comparison(run: RunData) -> Table:
    """Rows of the comparison: a task and metric each, with the core methods, difference and share of the gap."""
    together = {key.method for key in run.scores if key.hospital == "all"}
    methods = [name for name in CORE_METHODS if name in together]
    rows = []
    for task, metric in _headlines(run):
        scores = by_method(run.scores, task, metric)
        if scores:
            closed = gap_closed(metric, scores)
            rows.append(
                {
                    "task": task,
                    "metric": metric_title(metric),
                    "cells": cells(methods, scores),
                    "cases": _common_cases(scores[name] for name in methods if name in scores),
                    "difference": signed(gain(metric, scores.get("local"), scores.get("federated"))),
                    "closed": "n/a" if closed is None else f"{100 * closed:.0f} %".replace("-", "−"),
                    "bar": None if closed is None else round(100 * min(1.0, max(0.0, closed))),
                }
            )
    has_local = {"local", "federated"} <= together
    return {
        "methods": methods,
        "rows": rows,
        "seeds": run.seeds,
        "min_gap": f"{MIN_GAP:g}",
        "has_local": has_local,
        "has_pooled": has_local and "pooled" in together,
    }


def further(run: RunData) -> Table:
    """Rows of the metrics beside the headlines: a task and metric each, core methods as columns."""
    pairs = [pair for pair in task_metrics(run.scores) if not headline(pair[1]) and by_method(run.scores, *pair)]
    methods = [name for name in CORE_METHODS if name in run.methods]
    rows = [
        {"task": task, "metric": metric_title(metric), "cells": cells(methods, by_method(run.scores, task, metric))}
        for task, metric in pairs
    ]
    return {"methods": methods, "rows": rows}


def other_methods(run: RunData) -> Table:
    """Rows of the methods that are not among the core ones: a method each, tasks and metrics as columns."""
    names = [name for name in run.methods if name not in CORE_METHODS]
    columns = [pair for pair in _headlines(run) if {*names} & {*by_method(run.scores, *pair)}]
    rows = [
        {"method": name, "cells": [cell(by_method(run.scores, *pair).get(name)) for pair in columns]} for name in names
    ]
    return {"columns": [(task, metric_title(metric)) for task, metric in columns], "rows": rows}


def seed_rows(run: RunData) -> list[Table]:
    """One row a task, metric and method with the value of each seed."""
    rows = []
    for task, metric in _headlines(run):
        scores = by_method(run.scores, task, metric)
        for name in order_methods(scores):
            values = {row.seed: "n/a" if row.value is None else f"{row.value:.3f}" for row in scores[name].seeds}
            rows.append(
                {
                    "task": task,
                    "metric": metric_title(metric),
                    "method": name,
                    "scores": [values.get(seed, "–") for seed in run.seeds],
                }
            )
    return rows


def hospital_tables(run: RunData) -> list[Table]:
    """One table a task and metric: hospitals as rows, methods as columns, each hospital's own test cases."""
    tables, main = [], set(main_metrics(run.scores))
    for task, metric in _headlines(run):
        scores = {name: by_method(run.scores, task, metric, name) for name in run.hospitals}
        methods = order_methods({method for found in scores.values() for method in found})
        if methods:
            rows = [
                {"hospital": name, "cases": _common_cases(found.values()), "cells": cells(methods, found)}
                for name, found in scores.items()
            ]
            first = (task, metric) in main
            tables.append(
                {"task": task, "metric": metric_title(metric), "main": first, "methods": methods, "rows": rows}
            )
    return tables


def sites(run: RunData) -> Table:
    """Who has what: cases and splits, tasks and modalities of every hospital."""
    found: Mapping[str, Any] = run.summary.get("sites", {})
    labelled = (name for site in found.values() for name in site.get("tasks", []))
    trained = [task.name for task in run.tasks if task.kind]  # others are only probed
    tasks = list(dict.fromkeys([*trained, *labelled]))
    modalities = list(dict.fromkeys(name for site in found.values() for name in site.get("modalities", [])))
    rows = [
        {
            "hospital": name,
            "counts": [_or_na(found[name].get(column)) for column in ("cases", "train", "val", "test")],
            "tasks": [task in found[name].get("tasks", []) for task in tasks],
            "modalities": [modality in found[name].get("modalities", []) for modality in modalities],
        }
        for name in run.hospitals
        if name in found
    ]
    return {"tasks": tasks, "modalities": modalities, "rows": rows}


def contributions(run: RunData) -> Table:
    """Training examples behind each group of parameters, by hospital, summed over rounds; 1 = darkest cell."""
    sums: dict[str, dict[str, int]] = {}
    for row in run.training:
        for group, examples in (row.get("keys") or {}).items():
            total = sums.setdefault(str(group), {})
            for hospital, count in examples.items():
                total[hospital] = total.get(hospital, 0) + int(count)
    most = max((count for group in sums.values() for count in group.values()), default=0) or 1
    rows = [
        {
            "group": group,
            "cells": [
                {"count": f"{total.get(name, 0):,}", "shade": round(total.get(name, 0) / most, 3)}
                for name in run.hospitals
            ],
            "contributors": sum(1 for count in total.values() if count > 0),
        }
        for group, total in sums.items()
    ]
    return {"rows": rows}


def incidents(run: RunData) -> list[Table]:
    """Rounds that lacked a hospital: who was missing, whose reply was refused and why."""
    rows = []
    for row in run.rounds:
        missing, refused = list(map(str, row.get("missing") or [])), dict(row.get("refused") or {})
        if missing or refused:
            what = [f"{name} did not answer" for name in missing]
            what += [f"{name} was refused: {reason}" for name, reason in refused.items()]
            rows.append(
                {
                    "round": row.get("round", ""),
                    "phase": row.get("phase", ""),
                    "seed": row.get("seed"),
                    "names": [*missing, *map(str, refused)],
                    "what": what,
                }
            )
    return rows


def reproducibility(run: RunData) -> list[tuple[str, str]]:
    """What is needed to run it again: name and value."""
    summary = run.summary
    rounds = (run.study.get("training") or {}).get("rounds")
    steps = (summary.get("budget") or {}).get("steps")
    budget = [f"{rounds} rounds" if rounds else "", f"{steps:,} optimiser steps in all" if steps else ""]
    versions = [f"{name} {version}" for name, version in (summary.get("versions") or {}).items()]
    found = [
        ("Study", str(run.study.get("name", ""))),
        ("Study digest (sha256)", str(summary.get("digest", ""))),
        ("Seeds", ", ".join(map(str, run.seeds or summary.get("seeds") or [summary.get("seed", "")]))),
        ("Budget", ", ".join(filter(None, budget))),
        ("Versions", ", ".join(versions)),
        ("Commit", str(summary.get("commit", ""))),
        ("Finished", str(summary.get("finished", ""))),
        ("Command", str(summary.get("command", ""))),
        ("This page again", "modaltune-server report RUN_FOLDER"),
    ]
    return [(name, value) for name, value in found if value]


def fingerprints(run: RunData) -> list[tuple[str, str]]:
    """Name and sha256 of the files that this report was made from."""
    paths = [run.folder / name for name in _FINGERPRINTED if (run.folder / name).is_file()]
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def method_meaning(name: str) -> str:
    """One sentence on what a method is."""
    if name in _METHOD_MEANINGS:
        return _METHOD_MEANINGS[name]
    base, _, suffix = name.partition("/")
    return f"baseline {base}, {_BASELINE_SUFFIXES.get(suffix, suffix)}" if suffix else f"baseline {base}"


def cells(methods: Sequence[str], scores: Mapping[str, Score]) -> list[Table]:
    """One cell a method."""
    return [cell(scores.get(name)) | {"method": name} for name in methods]


def cell(score: Score | None) -> Table:
    """Value, interval and number of cases of one score as text."""
    if score is None or (score.value is None and score.cases == "0"):  # no such model
        return {"value": "–", "error": "", "interval": "", "cases": "", "note": ""}
    value = "n/a" if score.value is None else f"{score.value:.2f}"
    known = score.low is not None and score.high is not None
    undefined = sum(1 for row in score.seeds if row.value is None)
    note = f"undefined in {undefined} of {len(score.seeds)} seeds" if score.value is not None and undefined else ""
    return {
        "value": value,
        "error": _at_most(score.error),
        "interval": f"{score.low:.2f} to {score.high:.2f}" if known else "",
        "cases": score.cases,
        "note": note,
    }


def signed(value: float | None) -> str:
    """A difference with its sign; what rounds to zero has none."""
    if value is None:
        return "n/a"
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def megabytes(count: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: object) -> str:
    """Seconds for people."""
    if not isinstance(seconds, int | float):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _counted(run: RunData) -> list[str]:
    """Whose test cases the figures of all hospitals rest on, where they come from counts."""
    found: Table = next((row["counted"] for row in reversed(run.rounds) if row.get("counted")), {})
    known = [f"{task} of {_join(sites)}" for task, sites in found.items() if sites]
    return [f"These figures come from counts that hospitals sent: {'; '.join(known)}."] if known else []


def _at_most(error: float | None) -> str:
    """An error in three decimals, never rounded down; none where a value is exact."""
    return f"± {math.ceil(1000 * error) / 1000:.3f}" if error else ""


def _headlines(run: RunData) -> list[tuple[str, str]]:
    return [pair for pair in task_metrics(run.scores) if headline(pair[1])]


def _what_was_done(run: RunData) -> str:
    who = _count(len(run.hospitals), "hospital")
    trained = [task.name for task in run.tasks if task.kind] or [task.name for task in run.tasks]  # others are probed
    tasks = f"{_count(len(trained), 'task')} ({', '.join(trained)})"
    rounds = _count(len(run.training), "round")
    began = "started to train" if run.status == "FAILED" else "trained"
    if run.simulated:
        return f"In this simulation, {who} {began} one model together for {tasks}, over {rounds}."
    return f"{who} {began} one model together for {tasks}, over {rounds}; no case left a hospital."


def _result(run: RunData, task: str, metric: str) -> str:
    scores = by_method(run.scores, task, metric)
    federated = scores.get("federated")
    if federated is None or federated.value is None:
        return ""
    others = (("local", "local models on average"), ("pooled", "pooled training"))
    beside = [f"{text} {scores[m].value:.2f}" for m, text in others if m in scores and scores[m].value is not None]
    text = f"{task} {metric_title(metric)} {federated.value:.2f}"
    return f"{text} ({', '.join(beside)})" if beside else text


def _verdict(run: RunData) -> list[str]:
    """The largest gain over local training, and every task where federated training is not better."""
    gains = {}
    for task, metric in main_metrics(run.scores):
        scores = by_method(run.scores, task, metric)
        value = gain(metric, scores.get("local"), scores.get("federated"))
        if value is not None:
            gains[task] = (value, metric, gap_closed(metric, scores))
    if not gains:
        return []
    best = max(gains, key=lambda name: gains[name][0])
    value, metric, closed = gains[best]
    sentences = []
    if value > 0:
        share = "" if closed is None else f", which closes {100 * closed:.0f} % of the gap to pooled training"
        if closed is not None and closed >= 1:
            share = ", at least as much as pooled training gains"
        most = f"{signed(value)} {metric_title(metric)} ({best})"
        sentences.append(f"The largest gain over local training is {most}{share}.")
    worse = [name for name, (change, _, _) in gains.items() if change <= 0]
    if worse:
        sentences.append(f"Federated training was not better than local training for {_join(worse)}.")
    return sentences


def _common_cases(scores: Iterable[Score]) -> str:
    """Number of cases if all scores agree, else nothing (it is then shown cell by cell)."""
    found = {score.cases for score in scores}
    return found.pop() if len(found) == 1 else ""


def _or_na(value: object) -> str:
    return "n/a" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"

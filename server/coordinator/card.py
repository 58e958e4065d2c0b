"""The model card: for whom a model was tested, and for whom it was not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modaltune.federation.study import Study
from server.coordinator.runs import Run
from server.release_gate import Verdict, rows_of
from server.report_data import training_rounds


def model_card(run: Run, rows: Sequence[Mapping[str, Any]], verdict: Verdict, override: str = "") -> str:
    """Markdown: what the model is, who trained it, for whom it was tested, what it is not for.

    Args:
        rows: of ``metrics.json``.
        override: why the model is released although the gate refused it.
    """
    study, summary = Study.load(run.study), run.summary
    mine = rows_of(study, rows)
    parts = [
        _head(run, study),
        ["## Who took part", "", *_sites(study, summary)],
        ["## For whom it was tested", "", *_scores(mine, verdict)],
        ["## For whom it was not tested", "", *_untested(study, mine, verdict)],
        ["## Release", "", *_decision(verdict, override)],
        ["## Limits", "", *_limits(study)],
    ]
    return "\n".join(line for part in parts for line in (*part, "")).rstrip() + "\n"


def _head(run: Run, study: Study) -> list[str]:
    rows = training_rounds(run.rounds())
    degraded = [row["round"] for row in rows if row["status"] != "OK"]
    sites = sorted({site for row in rows for site in row["contributors"]})
    return [
        f"# {study.name}",
        "",
        "Research use only: not a medical device, not for decisions about patients.",
        "",
        f"- Study digest: `{study.digest}`",
        f"- Tasks: {', '.join(f'{task.name} ({task.kind})' for task in study.tasks)}",
        f"- Slide encoder: {study.slides.encoder}, text encoder: {study.text.encoder}; both frozen, named by hash in"
        " `study.json`, not part of this folder",
        *_patches(run.summary),
        f"- Trained in {len(rows)} rounds by {len(sites)} hospitals: {', '.join(sites)}",
        f"- Status of the run: {run.status['status']}"
        + (f"; rounds with a hospital missing or refused: {', '.join(map(str, degraded))}" if degraded else ""),
        *(["- A simulation: the hospitals were parts of one data set."] if run.summary.get("simulated") else []),
    ]


def _patches(summary: Mapping[str, Any]) -> Iterator[str]:
    """How the slides were cut and encoded that the model learnt from: no study begins with two kinds."""
    told: dict[str, Any] = {}
    for about in summary.get("sites", {}).values():
        told |= about.get("patches", {})
    if told:
        yield f"- Patches, as the hospitals' files say: {', '.join(f'{name} {value}' for name, value in told.items())}"


def _sites(study: Study, summary: Mapping[str, Any]) -> Iterator[str]:
    """What each hospital of the roster brought; 0 stands for a number too small to leave it."""
    found: Mapping[str, Any] = summary.get("sites", {})
    yield "| hospital | training cases | test cases | tasks | modalities |"
    yield "|---|---|---|---|---|"
    for site in study.roster:
        about = found.get(site)
        if about is None:
            yield f"| {site} | said nothing | | | |"
            continue
        tasks, modalities = ", ".join(about["tasks"]), ", ".join(about["modalities"])
        yield f"| {site} | {about['train']} | {about['test']} | {tasks} | {modalities} |"


def _scores(rows: Sequence[Mapping[str, Any]], verdict: Verdict) -> Iterator[str]:
    if not rows:
        yield "No score was computed in this run."
        return
    own = {(found.hospital, found.task, found.metric): found.difference for found in verdict.comparisons}
    yield "Events: deaths (of a score at a time: until then, or patients alive after it, the fewer), or cases of the"
    yield "rarest class. Own model: difference to the model that the hospital trained"
    yield "alone, on the same patients; positive = this model is better."
    yield ""
    yield "| hospital | task | metric | value | 95 % | cases | events | against own model |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        about = (row["hospital"], row["task"], row["metric"])
        if about in verdict.thin:
            continue
        score = own.get(about)
        against = "" if score is None else f"{_signed(score.value)}{_interval(score.low, score.high)}"
        events = verdict.at_horizon.get(about, verdict.events.get(about[:2], ""))
        events = "too few to be told" if events is None else events
        interval = "" if row["low"] is None else f"{_number(row['low'])} to {_number(row['high'])}"
        cells = (
            row["hospital"],
            row["task"],
            row["metric"],
            _number(row["value"]),
            interval,
            row["n"],
            events,
            against,
        )
        yield f"| {' | '.join(map(str, cells))} |"


def _untested(study: Study, rows: Sequence[Mapping[str, Any]], verdict: Verdict) -> Iterator[str]:
    scored = {(row["hospital"], row["task"]) for row in rows if row["value"] is not None}
    for site in study.roster:
        absent = [task.name for task in study.tasks if (site, task.name) not in scored]
        if absent:
            why = "no label there, too few cases, or a score that is not defined"
            yield f"- Patients of {site}: {', '.join(absent)} ({why})."
    for sentence in verdict.not_assessed:
        yield f"- {sentence}"
    yield "- Patients of any other hospital, other scanners, stains and years, other diseases."


def _decision(verdict: Verdict, override: str) -> Iterator[str]:
    if not verdict.problems:
        yield "Nothing that was assessed spoke against the release."
        return
    yield f"The release gate refused this model. It was released nevertheless: {override}"
    yield ""
    for problem in verdict.problems:
        yield f"- {problem}"


def _limits(study: Study) -> Iterator[str]:
    yield "- Scores hold for patients like those of the hospitals above, with their scanners, stains and follow-up."
    yield (
        f"- Counts below {study.privacy.min_cell} were suppressed at the hospitals; trained weights may still carry"
        " traces of training cases."
    )
    yield "- Intervals are not corrected for the number of comparisons."


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"

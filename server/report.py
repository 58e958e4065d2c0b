"""The report of a run: one HTML page that opens anywhere, offline, and can be printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from modaltune.storage import write_text
from server import report_calibration as calibration
from server import report_context as context
from server import report_curves as curves
from server import report_forest as forest
from server import report_plots as plots
from server import report_rounds as rounds
from server.report_cross_site import cross_site_section
from server.report_data import RunData, load_run, method_title
from server.report_gene_sets import gene_sets_section
from server.report_sites import site_sections
from server.report_style import STYLE
from server.report_template import PAGE

_MARKS = {"OK": "✓", "DEGRADED": "!", "FAILED": "✕"}


def write_report(run: Path) -> Path:
    """Build ``report.html`` from the files of a run folder.

    The page needs no other file and no network. ``predictions.parquet`` and ``embeddings.parquet`` exist in a
    simulation only; without them the figures that need single cases are replaced by a sentence that says why.
    The same folder always gives the same page.

    Args:
        run: the run folder; at least one of ``study.json``, ``summary.json`` and ``rounds.jsonl`` must be there.

    Returns:
        Path of the page, ``report.html`` in the run folder.

    Raises:
        FederationError: the folder holds no run, or one of its files is damaged.
    """
    path = run / "report.html"
    write_text(path, render(load_run(run)))
    return path


def render(run: RunData) -> str:
    """The page as text; every value from the run folder is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(PAGE).render(_values(run)).strip() + "\n"


def _values(run: RunData) -> dict[str, Any]:
    sections = site_sections(run)
    return {
        "style": Markup(STYLE),  # a constant of ours
        "name": str(run.summary.get("title") or run.study.get("name") or run.folder.name),
        "status": run.status,
        "mark": _MARKS.get(run.status, ""),
        "simulated": run.simulated,
        "lead": context.lead(run),
        "facts": context.facts(run),
        "comparison": context.comparison(run),
        "further": context.further(run),
        "paired": forest.comparison_table(run),
        "others": context.other_methods(run),
        "seeds": context.seed_rows(run),
        "hospitals": run.hospitals,
        "hospital_tables": context.hospital_tables(run),
        "sites": context.sites(run),
        "contributions": context.contributions(run),
        "incidents": context.incidents(run),
        "rounds": run.rounds,
        "traffic": rounds.traffic(run),
        "privacy": rounds.privacy(run),
        "site_sections": sections,
        "anchors": {section["name"]: section["anchor"] for section in sections},
        "reproducibility": context.reproducibility(run),
        "fingerprints": context.fingerprints(run),
        "notes": [str(note) for note in run.summary.get("notes") or []],
        "methods": run.methods,
        "colours": plots.method_colours(run.methods),
        "title": method_title,
        "meaning": context.method_meaning,
        "cross_site": cross_site_section(run.folder),
        "gene_sets": gene_sets_section(run),
        "counted": any(score.error for score in run.scores.values()),
        "drawn_from_counts": run.predictions is None and bool(run.counts),
        "figures": _figures(run),
    }


def _figures(run: RunData) -> dict[str, Any]:
    survival = [task.name for task in run.tasks if task.kind == "survival"]
    with plots.style():
        return {
            "overview": plots.overview(run),
            "own": plots.own_hospital(run),
            "forest": forest.forest(run),
            "calibration": calibration.calibration(run),
            "timeline": rounds.timeline(run),
            "losses": plots.losses(run),
            "traffic": plots.traffic(run),
            "roc": curves.roc(run),
            "survival": [(name, curves.kaplan_meier(run, name)) for name in survival],
            "map": curves.embedding_map(run),
        }

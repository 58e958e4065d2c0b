"""Section of the report: what gene sets contribute to the federated model's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from server.report_data import RunData, read_table
from server.report_plots import INK, WIDTH, Plot, method_colours, short, style, to_plot

GENE_SETS = "gene_sets.parquet"
MOST_SETS = 12
_PARTS = ("#AA3377", "#1F8A78")
_SECTION = """
<section id="gene-sets">
<h2>What gene sets contribute</h2>
<p>Score of a test case by the federated model minus its score with the genes of the set at the average of the training
cases, over {{ who }}.</p>
{%- for figure in figures %}
{%- if not figure.first and (loop.first or loop.previtem.first) %}<details><summary>Other labels</summary>{% endif %}
<h3>{{ figure.task }}<small>in {{ figure.unit }}; right speaks for {{ figure.towards }}</small></h3>
<figure>{{ figure.plot.svg }}</figure>
{%- if not figure.first and (loop.last or loop.nextitem.first) %}</details>{% endif %}
{%- endfor %}
<p class="note">Dot: mean over patients. Line: 95 % bootstrap interval over patients. The {{ most }} sets with the
largest mean size of the contribution, whatever its sign. Groups are made by what the model says; none is shown where
one has fewer than {{ least }} patients. Contributions tell how the score reacts, not how biology works; sets share
genes and do not add up. An interval that leaves out zero is no test: many sets are looked at, and they were not chosen
beforehand.</p>
</section>
"""


def gene_sets_section(run: RunData) -> Markup:
    """The section as HTML; nothing where the run left no contributions."""
    table = read_table(run.folder / GENE_SETS)
    table = None if table is None else run.of_first_seed(table)
    if table is None or table.empty:
        return Markup()
    cases, of = int(table.loc[table["group"] == "all", "cases"].iloc[0]), int(table["of"].iloc[0])
    everybody = f"all {of} test cases of all hospitals that have expression"
    sample = f"{cases} test cases, drawn from the {of} of all hospitals that have expression"
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return Markup(
        environment.from_string(_SECTION).render(
            who=everybody if cases == of else sample,
            figures=_figures(table),
            most=MOST_SETS,
            least=(run.study.get("privacy") or {}).get("min_cell", 1),
        )
    )


def _figures(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    figures: list[Mapping[str, Any]] = []
    for (task, towards, unit), part in table.groupby(["task", "towards", "unit"], sort=False):
        about = {"task": task, "towards": towards, "unit": unit}
        with style():
            plot = _plot(part, f"gene-sets-{len(figures)}", f"{task}, {towards}")
        figures.append(about | {"plot": plot, "first": task not in {figure["task"] for figure in figures}})
    return figures


def _plot(part: pd.DataFrame, name: str, about: str) -> Plot:
    """A row a gene set, a colour a group of patients."""
    everybody = part[part["group"] == "all"].sort_values(["mean_size", "gene_set"], ascending=[False, True])
    sets = everybody["gene_set"].head(MOST_SETS).tolist()
    groups = part["group"].unique().tolist()
    figure = Figure(figsize=(WIDTH * 0.6, 0.12 * (1 + len(groups)) * max(2, len(sets))))
    ax = figure.subplots()
    ax.axvline(0, color=INK, linewidth=0.8)
    colours = [method_colours(["federated"])["federated"], *_PARTS]
    offsets = np.linspace(-0.25, 0.25, len(groups)) if len(groups) > 1 else [0.0]
    for group, offset, colour in zip(groups, offsets, colours, strict=False):
        found = part[part["group"] == group].set_index("gene_set").loc[sets]
        places = np.arange(len(sets)) + offset
        ax.hlines(places, found["low"], found["high"], color=colour, linewidth=1.8, alpha=0.75)
        label = f"{'everybody' if group == 'all' else short(str(group), 40)}, n = {int(found['cases'].iloc[0])}"
        ax.scatter(found["mean"], places, s=30, color=colour, edgecolor="white", linewidth=0.8, zorder=5, label=label)
    ax.set_yticks(range(len(sets)), [short(str(one), 44) for one in sets])
    ax.set_ylim(len(sets) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), handletextpad=0.2, borderaxespad=0.0)
    return to_plot(figure, name, f"Contributions of gene sets to {about}: {_said(everybody, sets)}.")


def _said(everybody: pd.DataFrame, sets: Sequence[str]) -> str:
    means = everybody.set_index("gene_set")["mean"]
    return ", ".join(f"{name} {means[name]:+.2f}" for name in sets)

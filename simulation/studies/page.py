"""The page of a study: what was varied, scores with intervals as figures and tables, how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modaltune.storage import write_text
from server.report_context import method_meaning
from server.report_data import method_title, metric_title, order_methods
from server.report_plots import WIDTH, Plot, marker, method_colours, short, style, to_plot
from server.report_style import STYLE
from simulation.studies.results import SETTING, score_text
from simulation.studies.runner import Failure
from simulation.studies.spec import StudyFile

_PAGE = """
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ study.title or study.name }}</title><style>{{ style }}</style></head>
<body>
<p class="kicker">ModalTune Federated, study {{ study.name }}</p>
<h1>{{ study.title or study.name }}</h1>
<p class="lead">{{ study.note }}</p>
<dl class="facts">
{% for name, value in facts %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}
</dl>
<p class="note">Research use only. Values are means over the seeds, whiskers and brackets the bounds of the 95 %
bootstrap intervals over patients, averaged over the seeds. Nothing was chosen by test cases.</p>
{% if failures %}<h2>Without a result</h2>
<ul>{% for failure in failures %}<li><code>{{ failure.cell }}</code>: {{ failure.reason }}</li>{% endfor %}</ul>
{% endif %}
{% for block in blocks %}
<h2>{{ block.title }}</h2>
<figure>{{ block.plot.svg }}</figure>
<div class="wide"><table><thead><tr><th>Setting</th>
{% for method in block.methods %}<th>{{ title(method) }}</th>{% endfor %}</tr></thead>
<tbody>{% for setting, values in block.lines %}<tr><th>{{ setting }}</th>
{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% endfor %}
<h2>What the methods are</h2>
<div class="wide"><table><thead><tr><th>Method</th><th>What it is</th></tr></thead>
<tbody>{% for method in methods %}<tr><th>{{ title(method) }}</th><td>{{ meaning(method) }}
(<code>{{ method }}</code>)</td></tr>{% endfor %}</tbody></table></div>
<h2>Cost</h2>
<div class="wide"><table><thead><tr><th>Setting</th><th>Optimiser steps</th><th>MB, both ways</th><th>Seconds</th></tr>
</thead><tbody>{% for setting, steps, megabytes, seconds in costs %}
<tr><th>{{ setting }}</th><td>{{ steps }}</td><td>{{ megabytes }}</td><td>{{ seconds }}</td></tr>{% endfor %}
</tbody></table></div>
<p class="note">Means over the seeds; steps and megabytes of the federation over all its hospitals and rounds, seconds
of the whole cell on the machine it ran on.</p>
<h2>Again</h2>
<p>Every number is in <code>results.parquet</code>; each cell has a report of its own in <code>cells/</code>.</p>
<p><code>{{ command }}</code></p>
</body></html>
"""


def write_page(
    path: Path, study: StudyFile, rows: pd.DataFrame, table: pd.DataFrame, failures: Sequence[Failure], command: str
) -> None:
    """Write the page.

    Args:
        rows: of :func:`simulation.studies.results.shown`.
        table: of :func:`simulation.studies.results.tidy`.
    """
    cells = table.drop_duplicates("cell")
    settings = dict(zip(rows[SETTING], rows[SETTING], strict=True))
    facts = [
        ("settings", len(settings)),
        ("seeds", len(study.seeds)),
        ("cells finished", len(cells)),
        ("test cases", _span(rows["n"])),
    ]
    values = {
        "style": Markup(STYLE),  # a constant of ours
        "study": study,
        "facts": facts,
        "failures": failures,
        "blocks": _blocks(rows),
        "methods": order_methods(rows["method"].unique()),
        "costs": _costs(cells),
        "command": command,
        "title": method_title,
        "meaning": method_meaning,
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    write_text(path, environment.from_string(_PAGE).render(values).strip() + "\n")


def study_command(file: Path, data: Path | None, out: Path, only: str | None = None) -> str:
    """The command that runs a study, or ``only`` one cell of it, again."""
    words = ["modaltune-simulate", "study", str(file), *(["--data", str(data)] if data else []), "--out", str(out)]
    return shlex.join([*words, *(["--only", only] if only else [])])


def _blocks(rows: pd.DataFrame) -> list[dict[str, Any]]:
    blocks = []
    for number, (key, block) in enumerate(rows.groupby(["task", "metric", "hospital"], sort=False)):
        task, metric, hospital = map(str, key)
        methods = order_methods(block["method"].unique())
        lines = [
            (setting, [score_text(line.set_index("method"), method) for method in methods])
            for setting, line in block.groupby(SETTING, sort=False)
        ]
        title = f"{task}, {metric_title(metric)}" + ("" if hospital == "all" else f", {hospital}")
        with style():
            plot = _whiskers(block, methods, title, f"block{number}")
        blocks.append({"title": title, "methods": methods, "lines": lines, "plot": plot})
    return blocks


def _whiskers(block: pd.DataFrame, methods: Sequence[str], title: str, name: str) -> Plot:
    """Dots and whiskers: a row per setting, a colour and a shape per method."""
    settings = list(dict.fromkeys(block[SETTING]))
    figure = Figure(figsize=(WIDTH * 0.62, max(0.9, (0.22 + 0.14 * len(methods)) * len(settings))))
    ax = figure.subplots()
    colours = method_colours(methods)
    offsets = np.linspace(-0.3, 0.3, len(methods)) if len(methods) > 1 else [0.0]
    for method, offset in zip(methods, offsets, strict=True):
        found = block[(block["method"] == method) & block["value"].notna()]
        places = np.array([settings.index(setting) for setting in found[SETTING]]) + offset
        ax.hlines(places, found["low"], found["high"], color=colours[method], linewidth=1.8, alpha=0.75)
        look: dict[str, Any] = {
            "marker": marker(method),
            "color": colours[method],
            "edgecolor": "white",
            "linewidth": 0.8,
        }
        ax.scatter(found["value"], places, s=38, label=method_title(method), zorder=5, **look)
    _finish(ax, settings)
    said = ", ".join(f"{row.method} {row.setting} {row.value:.2f}" for row in block.itertuples())
    return to_plot(figure, name, f"{title} by setting and method. {said}")


def _finish(ax: Axes, settings: Sequence[str]) -> None:
    ax.set_yticks(range(len(settings)), [short(setting, 44) for setting in settings])
    ax.set_ylim(len(settings) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handletextpad=0.3)


def _costs(cells: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    names = cells["cell"].str.replace(r",?seed=\d+$", "", regex=True).replace("", "as in the file")
    means = cells.groupby(names, sort=False)[["steps", "megabytes", "seconds"]].mean()
    return [
        (str(setting), f"{row.steps:.0f}", f"{row.megabytes:.1f}", f"{row.seconds:.0f}")
        for setting, row in zip(means.index, means.itertuples(), strict=True)
    ]


def _span(counts: pd.Series) -> str:
    return "-".join(str(count) for count in sorted({int(counts.min()), int(counts.max())})) if len(counts) else "n/a"

"""Figures of the report that need only scores and the round log, and the style that all figures share."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from server.report_data import (
    CORE_METHODS,
    RunData,
    Score,
    by_method,
    main_metrics,
    method_title,
    metric_title,
    number,
    order_methods,
)

INK, MUTED, GRID = "#1f2933", "#5b6770", "#e3e8ec"
WIDTH = 10.2  # inches of the axes; a browser shows one inch as 96 px, and labels to the left come on top

# Okabe-Ito for methods and Tol's muted set for hospitals: colour-blind safe, and no colour means two things.
_METHOD_COLOURS = {
    "local": "#D55E00",
    "federated": "#0072B2",
    "pooled": "#009E73",
    "linear_local": "#E69F00",
    "linear": "#CC79A7",
    "separate_heads": "#56B4E9",
    "per_task": "#7A5C2E",
}
_MORE_COLOURS = ("#332288", "#882255", "#6B7A00", "#44AA99", "#666666", "#AA4499")
_HOSPITAL_COLOURS = ("#332288", "#CC6677", "#44AA99", "#DDAA33", "#882255", "#88CCEE", "#117733", "#AA4499", "#999933")
_MARKERS = {
    "local": "s",
    "federated": "o",
    "pooled": "D",
    "linear_local": "v",
    "linear": "^",
    "separate_heads": "<",
    "per_task": ">",
}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa5ae",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 96,
    "figure.subplot.bottom": 0,  # axes fill the figure; the tight box adds what their labels need
    "figure.subplot.left": 0,
    "figure.subplot.right": 1,
    "figure.subplot.top": 1,
    "font.family": "DejaVu Sans",  # measured with a wide font, shown in the reader's own, narrower one
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a hospital may have a dollar sign in its name
    "xtick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawn figure, or the sentence that says why there is none.

    Attributes:
        svg: inline SVG; None when nothing can be drawn.
        missing: the reason then.
    """

    svg: Markup | None = None
    missing: str = ""


def style() -> AbstractContextManager[None]:
    """The common look; draw figures and turn them into SVG inside it."""
    return rc_context(_STYLE)


def panels_of(
    count: int, columns: int, width: float, height: float, *, wspace: float, hspace: float
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels in rows of ``columns``; inches of the whole width and of one row."""
    rows = -(-count // columns)
    figure = Figure(figsize=(width, rows * height))
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": wspace, "hspace": hspace}).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, list(axes[:count])


def to_plot(figure: Figure, name: str, alt: str) -> Plot:
    """Turn a figure into inline SVG without outside references.

    Args:
        figure: the figure, drawn inside :func:`style`.
        name: unique in the page; it keeps element ids of several figures apart.
        alt: what the figure shows, for readers who cannot see it.
    """
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.03)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)
    return Plot(svg=Markup(re.sub(r"\s*\n\s*", " ", text)))  # safe: matplotlib has escaped every label


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """One colour a method, the same in every figure and table of a report."""
    ordered = order_methods(methods)
    others = [name for name in ordered if name not in _METHOD_COLOURS]
    more = {name: _MORE_COLOURS[i % len(_MORE_COLOURS)] for i, name in enumerate(others)}
    return {name: (_METHOD_COLOURS | more)[name] for name in ordered}


def hospital_colours(hospitals: Sequence[str]) -> dict[str, str]:
    """One colour a hospital, never one that means a method."""
    return {name: _HOSPITAL_COLOURS[i % len(_HOSPITAL_COLOURS)] for i, name in enumerate(hospitals)}


def marker(method: str) -> str:
    """Marker of a method, so that colour is not the only difference."""
    return _MARKERS.get(method, "h")


def short(text: str, length: int = 26) -> str:
    """Text that fits beside an axis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def overview(run: RunData) -> Plot:
    """Dots and whiskers: every method on every task, test cases of all hospitals together."""
    panels = [(task, metric, by_method(run.scores, task, metric)) for task, metric in main_metrics(run.together)]
    panels = [panel for panel in panels if any(score.value is not None for score in panel[2].values())]
    if not panels:
        return Plot(missing="No method was scored on the test cases of all hospitals together.")
    methods = order_methods({name for _, _, scores in panels for name in scores})
    columns, height = min(len(panels), 3), 0.36 * len(methods)
    rows = -(-len(panels) // columns)
    each = height + 1.1 * (rows - 1) / rows
    figure, axes = panels_of(len(panels), columns, WIDTH * 0.83, each, wspace=0.3, hspace=1.1 / height)
    low = _lowest(score for _, _, scores in panels for score in scores.values())
    for index, (ax, (task, metric, scores)) in enumerate(zip(axes, panels, strict=True)):
        _whiskers(ax, methods, scores)
        _score_axis(ax, task, metric, low)
        ax.set_yticks(range(len(methods)), [short(method_title(m)) for m in methods] if index % columns == 0 else [])
        ax.set_ylim(len(methods) - 0.5, -0.5)
    said = "; ".join(
        f"{task} {metric_title(metric)}: "
        + ", ".join(f"{method_title(m)} {s.value:.2f}" for m, s in scores.items() if s.value is not None)
        for task, metric, scores in panels
    )
    return to_plot(figure, "overview", f"Scores with 95 % intervals by task and method. {said}.")


def own_hospital(run: RunData) -> Plot:
    """Dots and whiskers: what each hospital gets from its own, the federated and the pooled model."""
    pairs = main_metrics({key: score for key, score in run.scores.items() if key.hospital != "all"})
    methods = [name for name in CORE_METHODS[:3] if name in run.methods]
    if not pairs or not methods or not run.hospitals:
        return Plot(missing="No method was scored hospital by hospital.")
    colours = method_colours(run.methods)
    height = 0.5 * len(run.hospitals)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(1, len(pairs), squeeze=False, gridspec_kw={"wspace": 0.14})[0]
    shown = (key.method in methods and key.hospital in run.hospitals and key[:2] in pairs for key in run.scores)
    low = _lowest(score for score, use in zip(run.scores.values(), shown, strict=True) if use)
    for ax, (task, metric) in zip(axes, pairs, strict=True):
        for row, hospital in enumerate(run.hospitals):
            if row % 2 == 0:
                ax.axhspan(row - 0.5, row + 0.5, color="#f5f7f9", zorder=0, linewidth=0)
            scores = by_method(run.scores, task, metric, hospital)
            for offset, name in zip(np.linspace(-0.22, 0.22, len(methods)), methods, strict=True):
                if name in scores:
                    _dot(ax, row + float(offset), scores[name], colours[name], marker(name), size=26)
        _score_axis(ax, task, metric, low)
        ax.set_yticks(range(len(run.hospitals)), [short(h) for h in run.hospitals] if ax is axes[0] else [])
        ax.set_ylim(len(run.hospitals) - 0.5, -0.5)
    for name in methods:
        axes[0].scatter([], [], s=26, color=colours[name], marker=marker(name), label=method_title(name))
    above = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1 + 0.5 / height), "borderaxespad": 0.0}
    axes[0].legend(ncols=3, columnspacing=1.4, handletextpad=0.3, **above)
    return to_plot(figure, "own", "Scores of the local, federated and pooled models on each hospital's own test cases.")


def losses(run: RunData) -> Plot:
    """Training loss by round: a thin line a hospital, their mean, and the validation loss."""
    rows = [row for row in run.training if number(row.get("loss")) is not None or row.get("losses")]
    if not rows:
        return Plot(missing="No training round was finished, so there is no loss to draw.")
    figure = Figure(figsize=(WIDTH * 0.8, 2.9))
    ax = figure.subplots()
    federated = method_colours(["federated"])["federated"]
    colours = hospital_colours(run.hospitals)
    many = len(run.hospitals) > len(_HOSPITAL_COLOURS)
    for hospital in run.hospitals:
        series = [(row["round"], number(row.get("losses", {}).get(hospital))) for row in rows]
        colour = "#9aa5ae" if many else colours[hospital]
        _line(ax, series, color=colour, linewidth=1.0, alpha=0.8, label="" if many else short(hospital))
    _line(ax, [(row["round"], number(row.get("loss"))) for row in rows], color=federated, linewidth=2.6, label="Mean")
    validation = [(row["round"], number(row.get("val_loss"))) for row in rows]
    dashes = {"linestyle": (0, (4, 2)), "linewidth": 2.0}
    _line(ax, validation, color=INK, label="Validation", **dashes)
    degraded = [row["round"] for row in rows if row.get("status") == "DEGRADED"]
    if degraded:
        floor = [0.03] * len(degraded)
        ax.plot(degraded, floor, "x", color="#9a3412", transform=ax.get_xaxis_transform(), label="Degraded round")
    ax.set_xlabel("Round")
    ax.set_ylabel("Loss (lower is better)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.02)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=1.8)
    return to_plot(figure, "losses", f"Training and validation loss over {len(rows)} rounds, by hospital and mean.")


def traffic(run: RunData) -> Plot:
    """Megabytes sent to and from the hospitals in each training round."""
    rows = [row for row in run.training if row.get("bytes_down") or row.get("bytes_up")]
    if not rows:
        return Plot(missing="The round log has no byte counts.")
    figure = Figure(figsize=(WIDTH * 0.8, 1.9))
    ax = figure.subplots()
    numbers = [row["round"] for row in rows]
    down = np.array([(row.get("bytes_down") or 0) / 1e6 for row in rows])
    up = np.array([(row.get("bytes_up") or 0) / 1e6 for row in rows])
    ax.bar(numbers, down, width=0.72, color="#7b8794", label="To the hospitals")
    ax.bar(numbers, up, width=0.72, bottom=down, color="#c3ccd3", label="From the hospitals")
    ax.grid(visible=False, axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("Round")
    ax.set_ylabel("MB, all hospitals")
    ax.set_xlim(numbers[0] - 0.7, max(numbers[-1], numbers[0] + 9) + 0.7)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), reverse=True, handlelength=1.2, handleheight=1.0)
    return to_plot(figure, "traffic", f"Megabytes per training round; {down.sum() + up.sum():.0f} MB in all.")


def _whiskers(ax: Axes, methods: Sequence[str], scores: Mapping[str, Score]) -> None:
    colours = method_colours(methods)
    for row, name in enumerate(methods):
        score = scores.get(name)
        if name == "federated":
            ax.axhspan(row - 0.5, row + 0.5, color="#eaf3f9", zorder=0, linewidth=0)
        if score is not None:
            seeds = [seed.value for seed in score.seeds if seed.value is not None]
            if len(seeds) > 1:
                ax.scatter(seeds, [row] * len(seeds), s=40, marker="|", color=colours[name], linewidth=1.0)
            _dot(ax, row, score, colours[name], marker(name))
        value = "n/a" if score is None or score.value is None else f"{score.value:.2f}"
        weight = "bold" if name == "federated" else "normal"
        ax.text(1.03, row, value, transform=ax.get_yaxis_transform(), va="center", fontweight=weight)


def _dot(ax: Axes, row: float, score: Score, colour: str, shape: str, size: float = 44) -> None:
    if score.value is None:
        return
    if score.low is not None and score.high is not None:
        ax.plot([score.low, score.high], [row, row], color=colour, linewidth=1.8, alpha=0.75, solid_capstyle="butt")
    dot = ax.scatter([score.value], [row], s=size, marker=shape, color=colour, edgecolor="white", linewidth=0.9)
    dot.set(zorder=5, clip_on=False)


def _lowest(scores: Iterable[Score]) -> float:
    """Where the axis begins that all panels share, so that they can be compared by eye."""
    ends = [end for score in scores for end in (score.value, score.low) if end is not None]
    return max(0.0, float(np.floor(min([0.48, *ends]) * 20)) / 20)


def _score_axis(ax: Axes, task: str, metric: str, low: float) -> None:
    ax.set_title(short(task, 32), pad=20)
    ax.annotate(metric_title(metric), (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", color=MUTED)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    if metric in ("auc", "c_index"):
        ax.set_xlim(low, 1.0)
        ax.xaxis.set_major_locator(MultipleLocator(0.1 if low >= 0.4 else 0.25 if low < 0.2 else 0.2, offset=0.5))
        ax.axvline(0.5, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)), zorder=1)


def _line(ax: Axes, series: Sequence[tuple[int, float | None]], **options: object) -> None:
    known = [(x, y) for x, y in series if y is not None]
    if known:
        values = np.array([np.nan if y is None else y for _, y in series])
        single = {"marker": "o"} if len(known) == 1 else {}
        ax.plot([x for x, _ in series], values, **(options | single))  # type: ignore[arg-type]

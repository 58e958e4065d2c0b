"""Who took part in which round, and what left the hospitals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from server.report_context import megabytes
from server.report_data import RunData
from server.report_plots import WIDTH, Plot, short, to_plot

_ABSENT, _REFUSED, _THERE = "#D3DAE0", "#B0413E", "#0072B2"
_LEFT = {
    "capability": "Names of tasks, modalities and measured genes, versions, numbers of cases by split",
    "preprocess": "Sums, sums of squares and counts over training cases; cases per label; deaths per three months",
    "train": "Trained weights (never the frozen encoders), cases behind each parameter, mean losses, numbers of steps",
    "tally": "Training cases by class (or deaths and survivors), mean and squared distances of their embeddings",
    "probe": "Likelihood of a linear probe with its gradient and curvature, summed over training cases",
    "label-query": "Test cases by their most probable text of a question that nobody labelled, mean probabilities",
    "evaluate": "Scores of the model on own test cases with intervals, and the number of those cases",
}
_BY_LABEL = "; the same by label of the study's tasks"
_COUNTED = "; test cases by class, prediction and score, and pairs of patients in the right order"


def timeline(run: RunData) -> Plot:
    """A row a hospital, a mark a training round: there, away, or refused; below it the seconds of each round."""
    rows = run.training
    if not rows or not run.hospitals:
        return Plot(missing="No training round was finished, so nobody took part in one.")
    height = 0.26 * len(run.hospitals)
    figure = Figure(figsize=(WIDTH * 0.8, height + 1.3))
    ratios = {"height_ratios": (height, 0.9), "hspace": 0.35 / (height + 0.9) * 2}
    ax, pace = figure.subplots(2, 1, sharex=True, gridspec_kw=ratios)
    for place, hospital in enumerate(run.hospitals):
        for row in rows:
            state = _state(row, hospital)
            ax.scatter([row["round"]], [place], color=state, marker="x" if state == _REFUSED else "s", s=32)
    for colour, shape, text in ((_THERE, "s", "took part"), (_ABSENT, "s", "away"), (_REFUSED, "x", "refused")):
        ax.scatter([], [], color=colour, marker=shape, s=34, label=text)
    ax.set_yticks(range(len(run.hospitals)), [short(name) for name in run.hospitals])
    ax.set_ylim(len(run.hospitals) - 0.4, -0.6)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handletextpad=0.2)
    pace.bar([row["round"] for row in rows], [row.get("seconds") or 0 for row in rows], width=0.72, color="#7b8794")
    pace.grid(visible=False, axis="x")
    pace.set_ylabel("Seconds")
    pace.set_xlabel("Round")
    pace.xaxis.set_major_locator(MaxNLocator(integer=True))
    numbers = [row["round"] for row in rows]
    pace.set_xlim(numbers[0] - 0.7, max(numbers[-1], numbers[0] + 9) + 0.7)
    return to_plot(
        figure, "timeline", f"Hospitals that took part in each of {len(rows)} training rounds, and its time."
    )


def traffic(run: RunData) -> list[dict[str, Any]]:
    """Bytes by phase, each way, with a total; all seeds together."""
    phases = list(dict.fromkeys(str(row.get("phase", "")) for row in run.rounds))
    rows = [_traffic_row(name, [row for row in run.rounds if str(row.get("phase", "")) == name]) for name in phases]
    return [*rows, _traffic_row("total", run.rounds)] if rows else []


def privacy(run: RunData) -> dict[str, Any]:
    """What left the hospitals, how many times, and what protected it."""
    spec: Mapping[str, Any] = run.study.get("privacy") or {}
    cell, together = int(spec.get("min_cell", 1)), int(spec.get("min_contributors", 1))
    protection = {
        "capability": f"a number of cases below {cell} is sent as 0",
        "preprocess": f"counts below {cell} are held back; with fewer training cases a hospital sends no sums",
        "train": f"a parameter that fewer than {cell} cases trained leaves unchanged; norms are bounded",
        "tally": f"nothing of a task that has a class of fewer than {cell} cases",
        "probe": f"no sums of such a task, nor where fewer than {cell} cases carry nearly all weight; a budget",
        "label-query": f"no table in which a count of fewer than {cell} cases stands; a budget",
        "evaluate": f"a score of fewer than {cell} cases is held back",
    }
    counted = f"; so are all counts of a task that has a class of fewer than {cell}"
    rows = []
    by_label = bool((run.study.get("label_queries") or {}).get("by_label"))
    for phase, what in _LEFT.items():
        found = [row for row in (*run.rounds, *run.queries) if row.get("phase") == phase]
        if found:
            counts = any("counted" in row for row in found)
            rows.append(
                {
                    "what": what + _COUNTED * counts + _BY_LABEL * (by_label and phase == "label-query"),
                    "messages": f"{sum(_answers(row) for row in found):,}",
                    "bytes": megabytes(sum(row.get("bytes_up") or 0 for row in found)),
                    "protection": protection[phase] + counted * counts,
                }
            )
    held = [f"{what} from {', '.join(map(str, values))}" for what, values in run.suppressed.items() if values]
    return {"rows": rows, "contributors": together, "cell": cell, "suppressed": held}


def _answers(row: Mapping[str, Any]) -> int:
    """Replies that arrived; a phase with several questions names them all."""
    refused: Sequence[Any] | Mapping[str, Any] = row.get("refused") or ()
    if replies := row.get("replies"):
        return sum(map(len, replies.values())) + len({*refused} - {*replies})
    return len(row.get("contributors") or ()) + len(refused)


def _state(row: Mapping[str, Any], hospital: str) -> str:
    if hospital in (row.get("refused") or {}):
        return _REFUSED
    return _THERE if hospital in (row.get("contributors") or ()) else _ABSENT


def _traffic_row(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    down = sum(row.get("bytes_down") or 0 for row in rows)
    up = sum(row.get("bytes_up") or 0 for row in rows)
    return {
        "phase": name,
        "rounds": len(rows),
        "down": megabytes(down),
        "up": megabytes(up),
        "total": megabytes(down + up),
    }

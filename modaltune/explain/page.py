"""Pages of explanations: one HTML file that opens anywhere, offline, with its pictures inside."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from modaltune.explain.template import CASE, COHORT, MACROS, STYLE
from modaltune.prediction.distance import Distance
from modaltune.prediction.site import RESEARCH_ONLY, ModelAtSite

if TYPE_CHECKING:
    from modaltune.explain.case import CaseExplanation, Look, TaskExplanation
    from modaltune.explain.cohort import CohortExplanation, TargetOverCases

MOST_SETS = 12
"""Gene sets on a page; the table beside it has all."""


def case_page(at: ModelAtSite, found: CaseExplanation) -> str:
    """The page of one case."""
    values = {
        "case_id": found.case_id,
        "split": found.split,
        "trained": at.cohort.site in at.study.roster and found.split != "test",
        "missing": ", ".join(found.missing) or "nothing",
        "patches": found.patches,
        "slides": len(found.places),
        "pictured": any(place.overview is not None for place in found.places),
        "distance": _distance(found.distance),
        "far": found.distance.far,
        "genes_absent": at.genes_absent if at.cohort.expression is not None else 0,
        "genes": len(at.preprocessing.genes),
        "tasks": [_task(task) for task in found.tasks],
    }
    return _render(CASE, at, values)


def cohort_page(at: ModelAtSite, found: CohortExplanation) -> str:
    """The page of a cohort."""
    values = {
        "notes": at.notes,
        "split": found.split,
        "without": "few" if found.without is None else found.without,
        "minimum": found.minimum,
        "sets": len(found.names),
        "targets": [_target(over, found.names) for over in found.targets],
    }
    return _render(COHORT, at, values)


def _render(template: str, at: ModelAtSite, values: Mapping[str, Any]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    shared = {
        "style": Markup(STYLE),  # a constant of ours
        "site": at.cohort.site,
        "study": at.study.name,
        "model": at.model,
        "use": RESEARCH_ONLY,
    }
    return environment.from_string(MACROS + template).render(**shared, **values).strip() + "\n"


def _distance(distance: Distance) -> str:
    parts = [("expression", distance.expression), ("slides", distance.slides)]
    known = [f"{name} {value:.2f}" for name, value in parts if not math.isnan(value)]
    return ", ".join(known) or "nothing to compare"


def _task(task: TaskExplanation) -> dict[str, Any]:
    target = task.target
    best = int(task.probabilities.argmax())
    alive = [
        f"{edge:.1f} months: {100 * value:.0f} %"
        for edge, value in zip(target.space.bin_edges if len(task.alive) else (), task.alive, strict=True)
    ]
    return {
        "name": target.task.name,
        "direction": target.direction,
        "unit": target.unit,
        "candidates": [
            {"name": name, "percent": f"{100 * value:.1f}", "best": place == best}
            for place, (name, value) in enumerate(zip(target.space.candidates, task.probabilities, strict=True))
        ],
        "months": None if target.task.kind != "survival" else f"{task.months:.1f}",
        "alive": ", ".join(alive),
        "look": None if task.look is None else _look(task.look),
        "modalities": bars(task.modalities, len(task.modalities)),
        "sets": bars(task.gene_sets, MOST_SETS),
        "further_sets": max(0, len(task.gene_sets) - MOST_SETS),
    }


def _look(look: Look) -> dict[str, Any]:
    return {
        "heat": data_uri(look.heat),
        "heads": data_uri(look.heads),
        "share": f"{100 * look.share:.0f} %",
        "count": look.weights.shape[1],
        "tiles": [
            {
                "slide": tile.slide,
                "x": tile.x,
                "y": tile.y,
                "times": f"{tile.times:.2f}",
                "picture": None if tile.picture is None else data_uri(tile.picture),
            }
            for tile in look.tiles
        ],
    }


def bars(values: Mapping[str, float], most: int) -> list[dict[str, Any]]:
    """The largest contributions of either sign, as bars in percent of half the width."""
    largest = sorted(values.items(), key=lambda pair: (-abs(pair[1]), pair[0]))[:most]
    scale = max((abs(value) for _, value in largest), default=0.0) or 1.0
    return [
        {
            "name": name,
            "value": signed(value),
            "left": f"{max(0.0, -value) / scale * 50:.1f}",
            "right": f"{max(0.0, value) / scale * 50:.1f}",
        }
        for name, value in largest
    ]


def _target(over: TargetOverCases, names: tuple[str, ...]) -> dict[str, Any]:
    everybody = over.groups[0]
    largest = sorted(range(len(names)), key=lambda place: (-everybody.size[place], names[place]))[:MOST_SETS]
    shown = [group for group in over.groups if group.cases is not None]
    reach = max(
        (abs(bound[place]) for group in shown for bound in (group.low, group.high) for place in largest), default=0
    )
    scale = 50 / (reach or 1.0)
    rows = [
        {
            "name": names[place],
            "size": f"{everybody.size[place]:.2f}",
            "groups": [
                {
                    "name": group.name,
                    "text": f"{signed(group.mean[place])} ({signed(group.low[place])} to {signed(group.high[place])})",
                    "dot": f"{50 + scale * group.mean[place]:.1f}",
                    "from": f"{50 + scale * group.low[place]:.1f}",
                    "width": f"{scale * (group.high[place] - group.low[place]):.1f}",
                }
                for group in shown
            ],
        }
        for place in largest
    ]
    return {
        "name": over.target.task.name,
        "direction": over.target.direction,
        "unit": over.target.unit,
        "rows": rows,
        "groups": "; ".join(
            f"{group.name}: {'too few' if group.cases is None else f'n = {group.cases}'}" for group in over.groups
        ),
    }


def signed(value: float) -> str:
    """A number with its sign, two decimals."""
    return f"{value:+.2f}".replace("-", "−")


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()

"""One case: what the model says, where it looked, and what the score would be without parts of the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from modaltune.errors import CaseTableError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import expected_risk
from modaltune.explain.attention import patch_attention, spread, times_even
from modaltune.explain.heatmap import head_maps, heat_map, png_of
from modaltune.explain.occlusion import (
    Occlusion,
    Target,
    contributions,
    modality_contributions,
    occlude,
    target_of_case,
)
from modaltune.explain.page import case_page
from modaltune.explain.places import SlidePlace, slide_places
from modaltune.federation.task import TaskSpec
from modaltune.prediction.distance import Distance, distance_of
from modaltune.prediction.site import ModelAtSite
from modaltune.prediction.table import missing_inputs, survival_curve
from modaltune.storage import write_bytes, write_text

TOP_TILES = 8
Say = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A patch with much attention.

    Attributes:
        slide: number of the slide in the case, from 1.
        x, y: level-0 pixels of its top-left corner.
        times: multiple of an even spread.
        picture: PNG; None without the slide's file.
    """

    slide: int
    x: int
    y: int
    times: float
    picture: bytes | None


@dataclass(frozen=True, kw_only=True)
class Look:
    """Where one task looked.

    Attributes:
        weights: ``[E, H, N]`` of every extractor and head.
        heat: PNG, mean over the heads of the last extractor.
        heads: PNG of these heads, first slide.
        tiles: patches with the most attention, most first.
    """

    weights: Floats
    heat: bytes
    heads: bytes
    tiles: tuple[Tile, ...]

    @property
    def mean(self) -> Floats:
        """``[N]`` mean over the heads of the last extractor."""
        out: Floats = self.weights[-1].mean(axis=0)
        return out

    @property
    def share(self) -> float:
        """Share of the patches over which that mean is spread."""
        return spread(self.mean)


@dataclass(frozen=True, kw_only=True)
class TaskExplanation:
    """One task of one case.

    Attributes:
        probabilities: ``[C]``.
        alive: survival: ``[S - 1]`` probability to live beyond each inner edge.
        months: survival: expected months.
        look: None for a case without slides.
        gene_sets: contribution of each, in the target's unit; empty without expression.
        modalities: contribution of each modality that the case has.
    """

    target: Target
    probabilities: Floats
    alive: Floats
    months: float
    look: Look | None
    gene_sets: dict[str, float]
    modalities: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CaseExplanation:
    """Everything on the page of one case."""

    case_id: str
    row: int
    split: str
    missing: tuple[str, ...]
    distance: Distance
    patches: int
    places: tuple[SlidePlace, ...]
    tasks: tuple[TaskExplanation, ...]


def row_of(at: ModelAtSite, case_id: str) -> int:
    """Place of a case in ``at.cases``.

    Raises:
        CaseTableError: no usable case has this identifier, which the message does not repeat.
    """
    found = np.flatnonzero(at.cohort.cases.index.astype(str) == case_id)
    if not len(found):
        raise CaseTableError(
            f"site {at.cohort.site}: CASE is none of {len(at.cases)} usable cases; give a case_id of"
            f" {at.config.paths.cases} that has a slide, expression or another modality"
        )
    return int(found[0])


def explain_case(at: ModelAtSite, row: int, slides: Path | None = None, say: Say = lambda _: None) -> CaseExplanation:
    """Explain the case at a place of ``at.cases``.

    Args:
        slides: folder with the slides themselves, for tiles.
        say: told how many gene sets are done.
    """
    at.learner.eval()
    case = at.cases[row].loaded()
    places = slide_places(at, row, slides)
    found = occlude(at.learner, case, at.preprocessing, say)
    looks = {
        task.name: _look(patch_attention(at.learner, case, task.name), places) if places else None
        for task in at.study.tasks
    }
    return CaseExplanation(
        case_id=str(at.cohort.cases.index[row]),
        row=row + 1,
        split=str(at.cohort.cases["split"].iloc[row]),
        missing=tuple(missing_inputs(at, row)),
        distance=distance_of(case, at.preprocessing, at.measured),
        patches=case.patch_count,
        places=tuple(places),
        tasks=tuple(_task(at, task, found, looks[task.name]) for task in at.study.tasks),
    )


def _task(at: ModelAtSite, task: TaskSpec, found: Occlusion, look: Look | None) -> TaskExplanation:
    space, probabilities = at.preprocessing.tasks[task.name], found.whole[task.name]
    target = target_of_case(task, space, probabilities)
    survival = task.kind == "survival"
    return TaskExplanation(
        target=target,
        probabilities=probabilities,
        alive=survival_curve(probabilities[None])[0] if survival else np.zeros(0),
        months=-float(expected_risk(probabilities, space)) if survival else float("nan"),
        look=look,
        gene_sets=contributions(target, found),
        modalities=modality_contributions(target, found),
    )


def _look(weights: Floats, places: Sequence[SlidePlace]) -> Look:
    borders = np.cumsum([len(place.corners) for place in places])[:-1]
    relative = times_even(weights[-1])
    mean = relative.mean(axis=0)
    return Look(
        weights=weights,
        heat=heat_map(places, np.split(mean, borders), "attention, as a multiple of an even spread"),
        heads=head_maps(places, [np.split(head, borders) for head in relative]),
        tiles=_top_tiles(mean, places),
    )


def _top_tiles(relative: Floats, places: Sequence[SlidePlace]) -> tuple[Tile, ...]:
    owner = np.repeat(np.arange(len(places)), [len(place.corners) for place in places])
    corners = np.concatenate([place.corners for place in places])
    tiles = []
    for patch in np.argsort(-relative, kind="stable")[:TOP_TILES].tolist():
        pixels = places[owner[patch]].tile(corners[patch])
        x, y = corners[patch].tolist()
        picture = None if pixels is None else png_of(pixels)
        tiles.append(Tile(slide=int(owner[patch]) + 1, x=x, y=y, times=float(relative[patch]), picture=picture))
    return tuple(tiles)


def write_case(out: Path, at: ModelAtSite, found: CaseExplanation) -> Path:
    """Write pictures, tables and, last, the page that shows them; returns the page."""
    for task in found.tasks:
        if task.look is not None:
            name = task.target.task.name
            write_bytes(out / f"attention-{name}.png", task.look.heat)
            write_bytes(out / f"heads-{name}.png", task.look.heads)
            for number, tile in enumerate(task.look.tiles, start=1):
                if tile.picture is not None:
                    write_bytes(out / f"tile-{name}-{number}.png", tile.picture)
    if found.places:
        write_text(out / "attention.csv", attention_table(found).to_csv(index=False, float_format="%.6g"))
    write_text(out / "contributions.csv", contribution_table(found).to_csv(index=False, float_format="%.6g"))
    page = out / "explanation.html"
    write_text(page, case_page(at, found))
    return page


def attention_table(found: CaseExplanation) -> pd.DataFrame:
    """One row a patch: ``slide``, ``x``, ``y``, and per task its weight, mean over the heads of the last extractor."""
    corners = np.concatenate([place.corners for place in found.places])
    numbers = np.repeat(np.arange(1, len(found.places) + 1), [len(place.corners) for place in found.places])
    looks = {task.target.task.name: task.look.mean for task in found.tasks if task.look is not None}
    return pd.DataFrame({"slide": numbers, "x": corners[:, 0], "y": corners[:, 1], **looks})


def contribution_table(found: CaseExplanation) -> pd.DataFrame:
    """One row a task and modality or gene set: ``task, towards, unit, kind, name, contribution``."""
    rows = [
        (task.target.task.name, task.target.direction, task.target.unit, kind, name, value)
        for task in found.tasks
        for kind, values in (("modality", task.modalities), ("gene set", task.gene_sets))
        for name, value in values.items()
    ]
    return pd.DataFrame(rows, columns=["task", "towards", "unit", "kind", "name", "contribution"])

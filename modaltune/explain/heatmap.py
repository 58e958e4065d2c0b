"""Pictures of attention: patches coloured by how many times an even spread they get, over the slide where it is known.

The colour scale is logarithmic, symmetrical and never narrower than half to double: attention that is nearly even
looks even.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from modaltune.evaluation.metrics import Floats
from modaltune.explain.places import Picture, SlidePlace

INK, MUTED = "#1f2933", "#5b6770"
_COLOURS = "PuOr_r"
_STYLE: dict[Any, Any] = {"font.size": 9.5, "axes.edgecolor": "#c3ccd3", "text.color": INK, "axes.labelcolor": MUTED}
_WIDTH, _TALLEST = 8.0, 5.5  # inches
_NO_PATCH = "#e4e8eb"
_EVEN = 1e-6


def heat_map(places: Sequence[SlidePlace], relative: Sequence[Floats], title: str) -> bytes:
    """A PNG of all slides of a case: each map beside the slide's picture, where there is one.

    Args:
        relative: for each slide, ``[n]`` multiples of an even spread.
    """
    limit = _limit(np.concatenate(list(relative)))
    shares = [place.size[0] for place in places for _ in range(_panels(place))]
    tallest = max(place.size[1] for place in places) / sum(shares) * _WIDTH
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, min(tallest, _TALLEST) + 1.0), dpi=150, layout="constrained")
        axes = figure.subplots(1, len(shares), squeeze=False, width_ratios=shares)[0].tolist()
        free = iter(axes)
        for number, (place, values) in enumerate(zip(places, relative, strict=True), start=1):
            name = f"slide {number}" if len(places) > 1 else ""
            if place.overview is not None:
                _show(next(free), place, place.overview, name)
            draw(next(free), place, values, limit)
        bar = figure.colorbar(
            ScalarMappable(Normalize(-limit, limit), _COLOURS), ax=axes, location="bottom", shrink=0.7, aspect=40
        )
        ticks = [float(power) for power in range(-math.floor(limit), math.floor(limit) + 1)]
        bar.set_ticks(ticks, labels=[_times(tick) for tick in ticks])
        bar.set_label(title)
        return _png(figure)


def _panels(place: SlidePlace) -> int:
    return 1 if place.overview is None else 2


def _show(axis: Axes, place: SlidePlace, picture: Picture, title: str = "") -> None:
    width, height = place.size
    axis.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased", cmap="gray", vmin=0, vmax=255)
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=9.5, color=MUTED)


def head_maps(places: Sequence[SlidePlace], relative: Sequence[Sequence[Floats]]) -> bytes:
    """A PNG with one small map of the first slide for each head; ``relative`` is head by head, slide by slide."""
    limit = _limit(np.concatenate([values for head in relative for values in head]))
    columns = min(6, len(relative))
    rows = -(-len(relative) // columns)
    place = places[0]
    with rc_context(_STYLE):
        edge = _WIDTH / columns
        height = min(2.0, place.size[1] / place.size[0]) * edge + 0.25
        figure = Figure(figsize=(_WIDTH, rows * height), dpi=120, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for number, axis in enumerate(axes):
            axis.set_visible(number < len(relative))
            if number < len(relative):
                draw(axis, place, relative[number][0], limit)
                axis.set_title(f"head {number + 1}", fontsize=8.5, color=MUTED)
        return _png(figure)


def draw(axis: Axes, place: SlidePlace, relative: Floats, limit: float) -> None:
    """One slide in grey, without a picture plain, and its patches in colour."""
    axis.set_facecolor(_NO_PATCH)
    if place.overview is not None:  # colours of a stain would mix with those of the scale
        _show(axis, place, np.asarray(Image.fromarray(place.overview).convert("L")))
    squares = place.corners[:, None, :] + place.edge * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])[None]
    cover = PolyCollection(
        list(squares.astype(float)),
        array=np.log2(np.maximum(relative, _EVEN)),
        cmap=_COLOURS,
        norm=Normalize(-limit, limit),
        alpha=1.0 if place.overview is None else 0.6,
        linewidths=0,
        antialiaseds=False,
    )
    axis.add_collection(cover)
    axis.set(xlim=(0, place.size[0]), ylim=(place.size[1], 0), aspect="equal", xticks=[], yticks=[])


def png_of(pixels: Picture) -> bytes:
    """Pixels ``[H, W, 3]`` as a PNG."""
    out = BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def _limit(relative: NDArray[np.float64]) -> float:
    """Largest power of two away from even that is coloured: the 99th percentile, at least one."""
    return max(1.0, float(np.percentile(np.abs(np.log2(np.maximum(relative, _EVEN))), 99)))


def _times(power: float) -> str:
    return f"×{2**power:.0f}" if power >= 0 else f"×1/{2**-power:.0f}"


def _png(figure: Figure) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    return out.getvalue()

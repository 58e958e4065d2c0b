"""modaltune slides: whole slides to bags of patch features."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from modaltune.console import console, emit_json, progress_line
from modaltune.errors import ConfigError, SlideError

if TYPE_CHECKING:
    from modaltune.slides.run import Extraction, Outcome

app = typer.Typer(no_args_is_help=True, help="Whole slides to bags of patch features.", pretty_exceptions_enable=False)
_WORKERS = min(8, max(1, (os.cpu_count() or 1) - 1))


@app.callback()
def _commands() -> None:
    """Whole slides to bags of patch features."""


@app.command()
def run(
    slides: Annotated[Path, typer.Option(help="Folder with slides, at any depth.")],
    out: Annotated[Path, typer.Option(help="Receives features/, thumbnails/, slides.csv and failures.csv.")],
    encoder: Annotated[
        str, typer.Option(help="efficientnet-lite0, a folder in $MODALTUNE_ENCODERS, a path, or a timm model.")
    ],
    weights: Annotated[Path | None, typer.Option(help="Weights file, when --encoder is a timm model.")] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=10,
            help="Micrometres per pixel of a patch (0.5); once typed, also of slides whose header has none.",
        ),
    ] = None,
    patch: Annotated[int, typer.Option(min=16, help="Edge of a patch in those pixels.")] = 256,
    slide_mpp: Annotated[
        float | None, typer.Option(min=0.05, max=10, help="The same where it is not that of the patches.")
    ] = None,
    upsample: Annotated[bool, typer.Option("--upsample", help="Enlarge slides coarser than --mpp.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0 = none of their own.")] = _WORKERS,
    batch: Annotated[int, typer.Option(min=1, help="Patches encoded at once.")] = 64,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Cut slides into patches and encode them; finished slides are kept, broken ones are listed at the end."""
    if importlib.util.find_spec("openslide") is None:
        raise ConfigError("slides need the packages of the extra 'slides': pip install -e '.[slides]'")
    from modaltune.slides.extraction import Pace, Patches
    from modaltune.slides.patch_encoder import EMBEDDED, patch_encoder
    from modaltune.slides.run import Extraction

    extraction = Extraction(
        out=out,
        encoder=patch_encoder(encoder, weights),
        patches=Patches(mpp=mpp or 0.5, size=patch, slide_mpp=slide_mpp, assumed_mpp=mpp, upsample=upsample),
        pace=Pace(workers=workers, batch=batch),
    )
    if encoder == EMBEDDED:
        progress_line(False)(f"{EMBEDDED} was trained on photographs: it is no pathology model, use it to try things")
    outcome = _with_progress(extraction, slides)
    _say_outcome(outcome, out)
    if outcome.assumed and slide_mpp is None:
        progress_line(False)(
            f"{outcome.assumed} slides have no micrometres per pixel in the header and were taken to have --mpp {mpp};"
            " where that is wrong, remove their bags and give --slide-mpp"
        )
    if not outcome.done + outcome.kept + outcome.busy:
        raise SlideError(f"none of {outcome.slides} slides could be used; the reasons are in {out / 'failures.csv'}")
    if json:
        emit_json(_summary(outcome, out))


def _with_progress(extraction: Extraction, slides: Path) -> Outcome:
    columns = (
        TextColumn("{task.fields[slides]}"),
        BarColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task("slides", total=None, slides="", speed="")

        def say(outcome: Outcome, share: float) -> None:
            bar.update(
                row,
                total=outcome.slides - outcome.kept,  # what an earlier run did tells nothing about the time left
                completed=outcome.ended - outcome.kept + share,
                slides=f"slide {min(outcome.ended + 1, outcome.slides)} of {outcome.slides}",
                speed=_speeds(outcome, share),
            )

        return extraction.run(slides, say)


def _speed(outcome: Outcome) -> float:
    return outcome.patches / outcome.seconds if outcome.seconds else 0.0


def _speeds(outcome: Outcome, share: float) -> str:
    """Patches and slides a second; ``share`` is the part of the present slide that is done."""
    slides = (outcome.done + share) / outcome.seconds if outcome.seconds else 0.0
    return f"{_speed(outcome):.0f} patches/s, {slides:.2g} slides/s"


def _say_outcome(outcome: Outcome, out: Path) -> None:
    say = progress_line(False)
    say(
        f"slides: {outcome.done} done, {outcome.kept} kept from before, {outcome.busy} in the hands of another process,"
        f" {len(outcome.failures)} failed; patches: {outcome.patches}, {_speed(outcome):.0f} a second"
    )
    if outcome.not_primary:
        say(f"{outcome.not_primary} bags are not of primary tumours by their TCGA barcode and not in slides.csv")
    if outcome.failures:
        table = Table("Row", "Why", title=f"Failed; their files are named in {out / 'failures.csv'}")
        for source, reason in outcome.failures:
            table.add_row(str(source.row), reason.replace("[", r"\["))
        console.print(table)


def _summary(outcome: Outcome, out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "slides": outcome.slides,
        "done": outcome.done,
        "kept": outcome.kept,
        "busy": outcome.busy,
        "failed": [{"row": source.row, "reason": reason} for source, reason in outcome.failures],
        "patches": outcome.patches,
        "seconds": round(outcome.seconds, 3),
    }

"""A folder of slides to a folder of bags: one slide at a time, kept when finished, never stopped by a broken one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

from modaltune.data.bags import write_bag
from modaltune.data.encoder_names import encoder_model
from modaltune.errors import ConfigError, FeatureFileError, SlideError
from modaltune.slides.extraction import Layout, Pace, Patches, encode_patches, lay_out
from modaltune.slides.folder import (
    Source,
    find_slides,
    read_slides_table,
    source_mark,
    write_failures,
    write_slides_table,
)
from modaltune.slides.lock import locked
from modaltune.slides.patch_encoder import PatchEncoder
from modaltune.storage import write_bytes

Attributes = Mapping[str, str | int | float]
SOURCE = "source_mark"


@dataclass(kw_only=True)
class Outcome:
    """What became of the slides of a folder.

    Attributes:
        slides: how many there are.
        kept: finished by an earlier run.
        done: finished by this one.
        busy: in the hands of another process.
        failures: slide and reason.
        patches: encoded by this run.
        seconds: that it took.
        not_primary: bags of TCGA slides of other than primary tumours, left out of ``slides.csv``.
        made: names of the slides done.
        assumed: slides done whose resolution an option gave.
    """

    slides: int
    kept: int = 0
    done: int = 0
    busy: int = 0
    failures: list[tuple[Source, str]] = field(default_factory=list)
    patches: int = 0
    seconds: float = 0.0
    not_primary: int = 0
    made: list[str] = field(default_factory=list)
    assumed: int = 0

    @property
    def ended(self) -> int:
        """Slides that this run needs not look at again."""
        return self.kept + self.done + self.busy + len(self.failures)


Say = Callable[[Outcome, float], None]
"""Told after every batch and slide how things stand, and which part of the present slide is done."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Slides to bags with one encoder and one kind of patch.

    Attributes:
        out: receives ``features/``, ``thumbnails/``, ``slides.csv`` and ``failures.csv``.
        encoder: the patch encoder.
        patches: what patches to cut.
        pace: how they are read.
    """

    out: Path
    encoder: PatchEncoder
    patches: Patches
    pace: Pace

    def run(self, slides: Path, say: Say) -> Outcome:
        """Every slide at and below a folder; those finished by an earlier run with the same settings are kept.

        Raises:
            SlideError: no slide, or none could be used.
            ConfigError: bags in ``out`` were made with other settings.
            FeatureFileError: ``slides.csv`` in ``out`` is no slides table.
            OSError: a file could not be written; the tables say what is done.
        """
        sources = find_slides(slides)
        read_slides_table(self.out / "slides.csv", self.out / "features")
        finished = {source.slide_id for source in sources if self._is_finished(source)}
        start, outcome, names = time.monotonic(), Outcome(slides=len(sources)), set[str]()

        def told(share: float) -> None:
            outcome.seconds = time.monotonic() - start
            say(outcome, share)

        try:
            for source in sources:
                if source.slide_id in names:
                    outcome.failures.append((source, "another slide has the same name; rename one"))
                elif source.slide_id in finished:
                    outcome.kept += 1
                else:
                    self._extract(source, outcome, told)
                names.add(source.slide_id)
                told(0.0)
        except BaseException:  # such as a full disk: it is told itself, and nothing of what is done is lost
            with suppress(OSError, FeatureFileError):
                self._write_tables(outcome)
            raise
        self._write_tables(outcome)
        return outcome

    def _write_tables(self, outcome: Outcome) -> None:
        write_failures(self.out / "failures.csv", outcome.failures)
        outcome.not_primary = write_slides_table(self.out / "slides.csv", self.out / "features", outcome.made)

    def _extract(self, source: Source, outcome: Outcome, told: Callable[[float], None]) -> None:
        file = self._bag_file(source)
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.with_name(f".{source.slide_id}.lock")) as mine:
            if not mine:
                outcome.busy += 1
            elif self._is_finished(source):  # by another process, since this run began
                outcome.kept += 1
            else:
                try:
                    self._one(source, file, outcome, told)
                    outcome.done += 1
                    outcome.made.append(source.slide_id)
                except SlideError as error:
                    outcome.failures.append((source, str(error)))
                except OSError as error:
                    outcome.failures.append((source, f"could not be written: {error.strerror}; the run ended here"))
                    raise

    def _one(self, source: Source, file: Path, outcome: Outcome, told: Callable[[float], None]) -> None:
        layout = lay_out(source.path, self.patches)
        write_bytes(self.out / "thumbnails" / f"{source.slide_id}.png", layout.picture)
        before = outcome.patches

        def count(patches: int) -> None:
            outcome.patches += patches
            told((outcome.patches - before) / len(layout.coords))

        bag = encode_patches(source.path, layout, self.patches, self.pace, self.encoder, count)
        facts = {**self._attributes(layout), SOURCE: source_mark(source.path)}
        write_bag(file, bag, encoder=self.encoder.name, name=source.slide_id, attributes=facts)
        outcome.assumed += layout.scan.mpp_from == "option"

    def _bag_file(self, source: Source) -> Path:
        return self.out / "features" / f"{source.slide_id}.h5"

    def _settings(self) -> Attributes:
        """What all bags of a folder have in common."""
        return {
            "encoder": self.encoder.name,
            "encoder_sha256": self.encoder.sha256,
            "mpp": self.patches.mpp,
            "patch_size": self.patches.size,
        }

    def _attributes(self, layout: Layout) -> Attributes:
        scan = layout.scan
        return {
            **self._settings(),
            "level0_mpp": scan.mpp,
            "level0_mpp_from": scan.mpp_from,
            "level0_magnification": round(10 / scan.mpp, 2),
            "level0_objective": scan.magnification,
            "target_magnification": round(10 / self.patches.mpp, 2),
            "level0_width": scan.width,
            "level0_height": scan.height,
        }

    def _is_finished(self, source: Source) -> bool:
        """Whether a whole bag made with these settings is there; a damaged one, or of another scan, is made again.

        Raises:
            ConfigError: it was made with others.
        """
        file = self._bag_file(source)
        try:
            with h5py.File(file) as bag:
                found: dict[str, Any] = dict(bag["coords"].attrs)
        except (OSError, KeyError):
            return False
        wanted = dict(self._settings())
        if encoder_model(str(found.get("encoder", ""))) == encoder_model(self.encoder.name):
            wanted.pop("encoder")
        if found.get("level0_mpp_from") == "option" and self.patches.slide_mpp is not None:
            wanted["level0_mpp"] = self.patches.slide_mpp
        for name, value in wanted.items():
            if found.get(name) != value:
                raise ConfigError(
                    f"{file.parent}: holds bags made with {name} {found.get(name, 'unknown')!s:.12}, this run has "
                    f"{value!s:.12}; one folder, one setting: choose another --out, or remove its bags"
                )
        try:
            return SOURCE not in found or found[SOURCE] == source_mark(source.path)
        except OSError:  # it cannot be read any more, and its bag is whole
            return True

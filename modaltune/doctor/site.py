"""The checks of a site folder, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from modaltune.data.preprocessing import check_patches
from modaltune.data.site import load_site
from modaltune.doctor import bags, joins, labels, measurements, tables
from modaltune.doctor.finding import Finding, Found, ok, run_checks, warning, worst
from modaltune.doctor.installation import device, room
from modaltune.doctor.site_files import SiteFiles
from modaltune.errors import ModalTuneError


def encoders(site: SiteFiles) -> Found:
    """The frozen encoders of the study, by hash."""
    if site.study is None:
        yield ok("--study names the encoders whose weights are compared")
        return
    from modaltune.encoders.registry import slide_encoder
    from modaltune.encoders.text import verified_text_encoder

    for text in {site.study.text, *(part.text for part in site.study.modalities if part.text is not None)}:
        try:
            verified_text_encoder(text)
            yield ok(f"text encoder {text.encoder}, sha256 as in the study")
        except ModalTuneError as problem:
            yield problem
    asked = site.study.slides
    slide_encoder(asked.encoder, in_width=asked.in_width, width=asked.width, depth=asked.depth, sha256=asked.sha256)
    yield ok(f"slide encoder {asked.encoder}, sha256 as in the study")


def disk(site: SiteFiles) -> Iterator[Finding]:
    """Free space and permission to write where rounds keep their state."""
    yield from room("site folder", site.folder)


def gpu(site: SiteFiles) -> Found:
    """The GPU, and the device that the site names."""
    yield from device()
    if (name := site.config.compute.device) not in ("auto", "cpu"):
        from modaltune.training import training_device

        yield ok(f"compute.device: {training_device(name)}")


CHECKS: Mapping[str, Callable[[SiteFiles], Found]] = {
    "site.toml": tables.site_file,
    "cases": tables.cases,
    "split": tables.split,
    "labels": labels.vocabulary,
    "survival": labels.survival,
    "clinical": tables.clinical,
    "counts": labels.counts,
    "expression": measurements.expression,
    "units": measurements.units,
    "genes": measurements.genes,
    "modalities": measurements.modalities,
    "slides": bags.slides,
    "bags": bags.bags,
    "samples": tables.samples,
    "joins": joins.joins,
    "missingness": joins.missingness,
    "encoders": encoders,
    "disk": disk,
    "gpu": gpu,
}


def examine(site: SiteFiles) -> list[Finding]:
    """Every check, and where none found an error the reading that training does."""
    findings = run_checks(CHECKS, site)
    if worst(findings) == "error":
        return findings
    said = {finding.finding for finding in findings}
    return findings + [finding for finding in run_checks({"loading": loading}, site) if finding.finding not in said]


def loading(site: SiteFiles) -> Iterator[Finding]:
    """Training reads the folder without an error."""
    size = sum(path.stat().st_size for path in _feature_files(site))
    if size > bags.READ_LIMIT:
        yield warning(
            "not tried: the feature files are large", "modaltune-client check STUDY --site SITE reads them all"
        )
        return
    salt = "" if site.study is None else site.study.digest
    cohort = load_site(site.folder, split_salt=salt, labels=site.vocabulary)
    if site.study is not None:
        check_patches(cohort, site.study)
    yield ok(f"training reads {len(cohort.cases)} cases")


def _feature_files(site: SiteFiles) -> list[Path]:
    if site.slides is None or site.config.paths.features is None:
        return []
    return [site.folder / site.config.paths.features / file for file in site.slides["file"]]

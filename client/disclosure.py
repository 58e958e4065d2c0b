"""What a study would make leave this site: every record, key, shape, byte and metric, before anything does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from client import label_queries, probes
from client.preprocessing import widest_preprocessing
from client.questions import trained_weights
from client.runtime import Site
from modaltune.data.preprocessing import check_patches
from modaltune.encoders.registry import slide_encoder
from modaltune.encoders.text import TextEncoder, verified_text_encoder
from modaltune.federation.capability import check_coverage
from modaltune.federation.evaluation_counts import disclosed
from modaltune.federation.manifest import TRAIN_METRICS, Manifest, evaluation_metrics, statistics_manifest
from modaltune.federation.study import Study
from modaltune.federation.wire import message_manifest


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One array of a message."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of its numbers."""
        return math.prod(self.shape) * np.dtype(self.type).itemsize


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """Everything that may leave a site in one study.

    Attributes:
        capability: as the site would state it; genes by number.
        statistics, training: arrays of one reply, at their largest: with every gene that this site measures.
        weights: verified local weights, name -> sha256.
        device: where training will run.
    """

    digest: str
    capability: dict[str, object]
    statistics: tuple[Entry, ...]
    training: tuple[Entry, ...]
    training_metrics: tuple[str, ...]
    evaluation_metrics: tuple[str, ...]
    label_queries: str
    probes: str
    evaluation_counts: str
    counts_below: int
    weights: dict[str, str]
    device: str

    @property
    def training_bytes(self) -> int:
        """Numbers of one training reply; there is one in each round."""
        return sum(entry.bytes for entry in self.training)

    def as_document(self) -> dict[str, object]:
        """For ``--json``."""
        genes = {"gene names": self.capability["genes"]}
        return {
            "digest": self.digest,
            "capability": {name: value for name, value in self.capability.items() if name != "genes"} | genes,
            "statistics": {entry.name: list(entry.shape) for entry in self.statistics},
            "training": {
                entry.name: {"type": entry.type, "shape": list(entry.shape), "bytes": entry.bytes}
                for entry in self.training
            },
            "training bytes": self.training_bytes,
            "training metrics": list(self.training_metrics),
            "evaluation metrics": list(self.evaluation_metrics),
            "label queries": self.label_queries,
            "probes": self.probes,
            "evaluation counts": self.evaluation_counts,
            "counts below": self.counts_below,
            "weights": self.weights,
            "device": self.device,
        }


def disclosure(site: Site) -> Disclosure:
    """Look at a site's data through a study.

    Raises:
        ModalTuneError: data or local weights do not fit the study.
    """
    study = site.study
    capability = site.capability()
    genes = capability.pop("genes")
    if "expression" in capability["modalities"]:
        check_coverage(site.cohort.site, genes, study)
    check_patches(site.cohort, study)
    manifest, _ = trained_weights(study, widest_preprocessing(study, genes))
    return Disclosure(
        digest=study.digest,
        capability=capability | {"genes": len(genes)},
        statistics=_entries(statistics_manifest(study, genes)),
        training=_entries(message_manifest(study.training.wire, manifest)),
        training_metrics=TRAIN_METRICS,
        evaluation_metrics=evaluation_metrics(study),
        label_queries=label_queries.disclosed(study),
        probes=probes.disclosed(study),
        evaluation_counts=disclosed(study),
        counts_below=site.minimum,
        weights=verify_weights(study),
        device=str(site.device),
    )


def verify_weights(study: Study) -> dict[str, str]:
    """Check the frozen weights on this machine against the study and return their hashes.

    Raises:
        ModelFileError: weights are absent, or others than the study's.
    """
    spec = study.slides
    slide_encoder(spec.encoder, in_width=spec.in_width, width=spec.width, depth=spec.depth, sha256=spec.sha256)
    found = {f"slide encoder {spec.encoder}": spec.sha256}
    for encoder in (study.text, *(modality.text for modality in study.modalities if modality.text is not None)):
        found[f"text encoder {encoder.encoder}"] = verified_text_encoder(encoder).sha256
    return found


def embed_labels(study: Study) -> None:
    """Embed every label text of a study now, so that the client app finds them and needs no text encoder."""
    encoder: TextEncoder = verified_text_encoder(study.text)
    for space in widest_preprocessing(study, ()).tasks.values():
        encoder.embed(space.texts)


def _entries(manifest: Manifest) -> tuple[Entry, ...]:
    return tuple(Entry(name=name, type=manifest.type_of(name), shape=shape) for name, shape in manifest.shapes.items())

"""Studies of two sizes for measurements: the full trainable state, and a small one."""

from __future__ import annotations

from collections.abc import Sequence

from modaltune.benchmarks.full import EVERYWHERE, gene_indices
from modaltune.encoders.small import small_slide_encoder
from modaltune.encoders.text import text_encoder
from modaltune.federation.inputs import SlideSpec, TextSpec
from modaltune.federation.settings import ModelSpec, PrivacySpec, TrainingSpec
from modaltune.federation.study import Study
from modaltune.federation.task import Label, TaskSpec
from modaltune.storage import digest_state

_UNREAD = "0" * 64  # of weights that the coordinator does not have
_WIDTH = 32


def scale_study(size: str, sites: Sequence[str], rounds: int, deadline_seconds: float) -> Study:
    """A study of three tasks whose model nobody runs: ``full`` as in ``modaltune bench wire``, or ``small``."""
    texts = ("low", "high", "mixed", "unknown")
    labels = tuple(Label(value=text, text=f"{text} grade carcinoma") for text in texts)
    full = size == "full"
    sets = gene_indices() if full else ((0, 1, 2), (3, 4))
    genes = ModelSpec(groups=EVERYWHERE, heads=12, width_ratio=0.25, extra_extractors=2, output_width=256)
    return Study(
        name=f"scale-{size}",
        tasks=tuple(TaskSpec(name=f"task{n}", kind="nominal", template="{text}", labels=labels) for n in range(3)),
        roster=tuple(sites),
        quorum=len(sites),
        deadline_seconds=deadline_seconds,
        slides=SlideSpec(encoder="longnet", in_width=1536, width=768, depth=12, sha256=_UNREAD) if full else _small(),
        text=TextSpec(sha256=text_encoder().sha256),
        gene_sets={f"set{n:03d}": tuple(f"G{gene:04d}" for gene in members) for n, members in enumerate(sets)},
        clinical=(),
        model=genes.model_copy(update={"gene_tokens": 64}) if full else ModelSpec(),
        training=TrainingSpec(rounds=rounds),
        privacy=PrivacySpec(min_cell=1),
    )


def _small() -> SlideSpec:
    encoder = small_slide_encoder(_WIDTH)
    return SlideSpec(in_width=_WIDTH, sha256=digest_state(encoder.state_dict()))

"""The rows of the published tables by name: how each is built and with which settings it is trained.

Learning rate and weight decay are those of the named design; everything else of the recipe (AdamW, batch size, warm-up,
cosine, rounds) is the study's, so that all rows take the same number of epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from modaltune.errors import ConfigError
from modaltune.federation.settings import NEEDS
from modaltune.federation.study import Study
from modaltune.models.baselines.abmil import ABMIL
from modaltune.models.baselines.base import Baseline, Inputs, Trunk
from modaltune.models.baselines.genes import MLP, GeneMixer, SparseMLP
from modaltune.models.baselines.gigapath import TunedEncoder
from modaltune.models.baselines.late_fusion import LateFusion
from modaltune.models.baselines.mcat import MCAT
from modaltune.models.baselines.survpath import SurvPath
from modaltune.models.baselines.transmil import TransMIL


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trained baseline.

    Attributes:
        title: as in the published tables.
        build: makes the trunk.
        learning_rate, weight_decay: of its design.
        source: where these two come from.
        encoder: slide encoder that a row of its name reads; the study's takes its place.
    """

    title: str
    build: Callable[[Inputs], Trunk]
    learning_rate: float
    weight_decay: float
    source: str
    encoder: str = ""


_SURVPATH = "SurvPath's comparison"
_LINEAR_RULE = "base rate 2e-3 for 256 cases at a batch of 32; one rate for all layers"

ROWS: dict[str, Row] = {
    "abmil": Row(title="ABMIL", build=ABMIL, learning_rate=1e-3, weight_decay=1e-4, source=_SURVPATH),
    "transmil": Row(title="TransMIL", build=TransMIL, learning_rate=2e-4, weight_decay=1e-5, source="TransMIL"),
    "gigapath_tuned": Row(
        title="Prov-GigaPath (tuned)",
        build=TunedEncoder,
        learning_rate=2.5e-4,
        weight_decay=0.05,
        source=_LINEAR_RULE,
        encoder="longnet",
    ),
    "mlp": Row(title="MLP", build=MLP, learning_rate=5e-4, weight_decay=1e-4, source=_SURVPATH),
    "s_mlp": Row(title="S-MLP", build=SparseMLP, learning_rate=5e-4, weight_decay=1e-4, source="as MLP"),
    "gene_mixer": Row(title="Gene Mixer", build=GeneMixer, learning_rate=5e-4, weight_decay=1e-4, source="as MLP"),
    "mcat": Row(title="MCAT", build=MCAT, learning_rate=2e-4, weight_decay=1e-5, source="MCAT"),
    "survpath": Row(title="SurvPath", build=SurvPath, learning_rate=5e-4, weight_decay=1e-4, source="SurvPath"),
    "abmil_cat": Row(
        title="ABMIL (cat)",
        build=lambda inputs: LateFusion(inputs, ABMIL(inputs)),
        learning_rate=1e-3,
        weight_decay=1e-4,
        source="as ABMIL",
    ),
    "transmil_cat": Row(
        title="TransMIL (cat)",
        build=lambda inputs: LateFusion(inputs, TransMIL(inputs)),
        learning_rate=2e-4,
        weight_decay=1e-5,
        source="as TransMIL",
    ),
    "gigapath_cat": Row(
        title="Prov-GigaPath (cat)",
        build=lambda inputs: LateFusion(inputs, TunedEncoder(inputs)),
        learning_rate=2.5e-4,
        weight_decay=0.05,
        source="as Prov-GigaPath (tuned)",
        encoder="longnet",
    ),
}
ROWS |= {
    "titan_tuned": replace(ROWS["gigapath_tuned"], title="TITAN (tuned)", encoder="titan"),
    "titan_cat": replace(ROWS["gigapath_cat"], title="TITAN (cat)", encoder="titan"),
}


def build_baseline(kind: str, inputs: Inputs) -> Baseline:
    """A fresh baseline.

    Raises:
        ConfigError: unknown name, or the study lacks what the model reads.
    """
    if kind not in ROWS:
        raise ConfigError(f"unknown model {kind!r}; choose from {', '.join(sorted(ROWS))}")
    if "expression" in NEEDS[kind] and not inputs.genes:
        raise ConfigError(f"model {kind!r} reads expression and no site of the study has it; choose another model")
    return Baseline(ROWS[kind].build(inputs))


def baseline_study(study: Study, kind: str) -> Study:
    """The same study with a baseline in place of its model: same cases, tasks, rounds and steps."""
    row = ROWS[kind]
    recipe = {
        "objective": "hazards",
        "learning_rate": row.learning_rate,
        "weight_decay": row.weight_decay,
        "modality_dropout": 0.0,  # of the models with two modalities, none can do without one
    }
    changes = {
        "name": f"{study.name}-{kind.replace('_', '-')}",
        "model": study.model.model_copy(update={"kind": kind, "head": "separate"}),
        "training": study.training.model_copy(update=recipe),
    }
    return Study.model_validate(study.model_copy(update=changes).model_dump())

"""The model of a study: ModalTune with its label head, built the same way at every site and at the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from modaltune.data.batch import Batch, CaseTensors
from modaltune.data.preprocessing import Preprocessing, clinical_width, gene_columns
from modaltune.encoders.gene import GeneEncoderConfig, set_indices
from modaltune.encoders.registry import blank_slide_encoder, slide_encoder
from modaltune.encoders.slide import SlideEncoder
from modaltune.encoders.text import verified_text_encoder
from modaltune.errors import ConfigError, ModelFileError
from modaltune.federation.study import Study
from modaltune.models.adapters import AdapterConfig
from modaltune.models.baselines.base import Baseline, Inputs
from modaltune.models.baselines.registry import build_baseline
from modaltune.models.modaltune import ModalTune, ModalTuneConfig, trainable_state
from modaltune.seeds import derive_seed
from modaltune.storage import digest_text, load_state, save_state, write_text
from modaltune.tasks.head import HazardHeads, SeparateHeads, TextHead, candidate_targets
from modaltune.tasks.projector import seeded_projector
from modaltune.trust.release import check_release


class Learner(nn.Module):
    """ModalTune, or a baseline in its place, plus the head that scores a task's candidate labels.

    Args:
        kinds: kind of every task.
        scales: ordinal tasks whose candidates lie on several scales: how many lie on each.
    """

    def __init__(
        self,
        modaltune: ModalTune | Baseline,
        head: TextHead | SeparateHeads,
        kinds: Mapping[str, str],
        scales: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.modaltune = modaltune
        self.head = head
        self.kinds = dict(kinds)
        self.scales = dict(scales)

    def forward(self, batch: Batch, cases: Tensor, tasks: list[str]) -> Tensor:
        """Embeddings ``[Q, O]`` of (case, task) pairs."""
        out: Tensor = self.modaltune(batch, cases, tasks)
        return out

    def exercised_by(self, case: CaseTensors) -> set[str]:
        """Optional modules and parameters that a training case reaches; all others are reached by every case."""
        if isinstance(self.modaltune, Baseline):
            return {f"head.classifiers.{task}" for task in case.targets}
        tokens = self.kinds if self.modaltune.config.task_pass == "joint" else case.targets
        out = {f"modaltune.task_tokens.vectors.{task}" for task in tokens}
        out |= {f"head.{part}.{task}" for task in case.targets for part in ("scale", "maps", "classifiers")}
        out.add("modaltune.gene_encoder" if case.has_expression else "modaltune.missing.expression")
        if case.patch_count == 0:
            out.add("modaltune.missing.slides")
        for name in self.modaltune.vector_encoders:
            out.add(f"modaltune.{'vector_encoders' if name in case.vectors else 'missing'}.{name}")
        return out


OPTIONAL_PREFIXES = (
    "modaltune.task_tokens.vectors.",
    "head.scale.",
    "head.maps.",
    "head.classifiers.",
    "modaltune.gene_encoder.",
    "modaltune.missing.",
    "modaltune.vector_encoders.",
)


def frozen_encoder(study: Study) -> SlideEncoder:
    """The slide encoder of a study as it was published."""
    spec = study.slides
    return slide_encoder(spec.encoder, in_width=spec.in_width, width=spec.width, depth=spec.depth, sha256=spec.sha256)


def _blank_encoder(study: Study) -> SlideEncoder:
    spec = study.slides
    return blank_slide_encoder(spec.encoder, in_width=spec.in_width, width=spec.width, depth=spec.depth)


def label_targets(study: Study, preprocessing: Preprocessing) -> dict[str, Tensor]:
    """Frozen unit targets ``[C, O]`` of every task: text encoder, seeded projector, centring."""
    encoder = verified_text_encoder(study.text)
    targets = {}
    for task in study.tasks:
        texts = encoder.embed(preprocessing.tasks[task.name].texts)
        projector = seeded_projector(study.seed, texts.shape[1], study.model.output_width)
        targets[task.name] = candidate_targets(projector(texts), centre=study.model.centre_texts)
    return targets


def _gene_config(study: Study) -> GeneEncoderConfig:
    spec = study.model
    return GeneEncoderConfig(
        kind=spec.gene_encoder,
        latent=spec.gene_latent,
        depth=spec.gene_depth,
        tokens=spec.gene_tokens,
        dropout=spec.gene_dropout,
        input_dropout=spec.expression_dropout,
    )


def _gene_inputs(study: Study, sets: Mapping[str, Sequence[str]], genes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Columns of the expression input that each gene set reads: its genes and, in a union of panels, their flags."""
    found = set_indices(sets, genes)
    if study.gene_panel == "intersection":
        return found
    return tuple((*columns, *(len(genes) + column for column in columns)) for columns in found)


def build_learner(
    study: Study, preprocessing: Preprocessing, targets: Mapping[str, Tensor] | None = None, *, frozen: bool = True
) -> Learner:
    """A fresh model of the study; its initial weights depend on the study seed only.

    Args:
        targets: label targets of a released model; None computes them with the text encoder, if the head needs any.
        frozen: load the frozen slide encoder; without it the model can be averaged, not run.
    """
    spec = study.model
    if spec.kind != "modaltune":
        return _baseline_learner(study, preprocessing, frozen=frozen)
    sets = dict(sorted(preprocessing.gene_sets.items()))  # as in canonical JSON: copies that travelled agree
    config = ModalTuneConfig(
        tasks=tuple(task.name for task in study.tasks),
        gene_indices=_gene_inputs(study, sets, preprocessing.genes),
        clinical_width=clinical_width(study),
        vectors=tuple((modality.name, modality.width, modality.tokens) for modality in study.modalities),
        output_width=spec.output_width,
        adapter=AdapterConfig(
            groups=spec.groups,
            heads=spec.heads,
            width_ratio=spec.width_ratio,
            extra_extractors=spec.extra_extractors,
            gamma=spec.gamma,
            drop_path=spec.drop_path,
            residual=spec.residual,
        ),
        gene_encoder=_gene_config(study),
        token_join=spec.token_join,
        task_pass=spec.task_pass,
        frozen_dropout=spec.frozen_dropout,
    )
    encoder = frozen_encoder(study) if frozen else _blank_encoder(study)
    classes = _classes(study, preprocessing)
    if spec.head == "text" and targets is None:
        targets = label_targets(study, preprocessing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(study.seed, "initial-weights"))
        if spec.head == "separate":
            head: SeparateHeads | TextHead = SeparateHeads(classes, spec.output_width)
        else:
            head = TextHead(targets or {}, temperature=study.training.temperature, maps=spec.task_maps)
        model = ModalTune(encoder, config)
    return Learner(model, head, {task.name: task.kind for task in study.tasks}, _scales(study, preprocessing))


def _classes(study: Study, preprocessing: Preprocessing) -> dict[str, int]:
    return {task.name: len(preprocessing.tasks[task.name].candidates) for task in study.tasks}


def _scales(study: Study, preprocessing: Preprocessing) -> dict[str, tuple[int, ...]]:
    out = {}
    for task in study.tasks:
        of = {label.value: label.scale for label in task.labels}
        if len(set(of.values())) > 1:
            candidates = preprocessing.tasks[task.name].candidates
            out[task.name] = tuple(len(list(levels)) for _, levels in groupby(candidates, of.__getitem__))
    return out


def _baseline_learner(study: Study, preprocessing: Preprocessing, *, frozen: bool) -> Learner:
    def encoder() -> SlideEncoder:
        if not frozen:
            raise ModelFileError(
                f"model {study.model.kind!r} trains the slide encoder {study.slides.encoder!r}, so its weights are"
                " needed here too; put them where the sites have them (MODALTUNE_ENCODERS)"
            )
        return frozen_encoder(study)

    sets = dict(sorted(preprocessing.gene_sets.items()))
    inputs = Inputs(
        features=study.slides.in_width,
        genes=gene_columns(study, preprocessing.genes),
        gene_indices=_gene_inputs(study, sets, preprocessing.genes),
        slide_encoder=encoder,
        scale=study.model.width_scale,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(study.seed, "initial-weights"))
        model = build_baseline(study.model.kind, inputs)
        head = HazardHeads(_classes(study, preprocessing), model.config.output_width, study.endpoints)
    return Learner(model, head, {task.name: task.kind for task in study.tasks})


def load_trainable(learner: Learner, state: Mapping[str, Tensor]) -> None:
    """Copy trained tensors into a model; names and shapes must match exactly."""
    own = trainable_state(learner)
    if missing := sorted(set(own) ^ set(state)):
        raise ModelFileError(f"weights do not fit the study: {len(missing)} tensor(s) differ, first {missing[0]}")
    with torch.no_grad():
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise ModelFileError(f"weights: {name} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}")
            value.copy_(state[name])


def save_model(folder: Path, learner: Learner, study: Study, preprocessing: Preprocessing) -> None:
    """Everything that prediction needs: trained weights, label targets, study, preprocessing."""
    targets = {name: value for name, value in learner.named_parameters() if name.startswith("head.candidates.")}
    save_state(folder / "weights.safetensors", trainable_state(learner))
    if targets:
        save_state(
            folder / "label_targets.safetensors", {name.rsplit(".", 1)[1]: value for name, value in targets.items()}
        )
    write_text(folder / "preprocessing.json", preprocessing.to_json())
    write_text(folder / "study.json", study.to_json())


def load_model(folder: Path, public_pem: str | None = None) -> tuple[Learner, Study, Preprocessing]:
    """Read a model folder written by :func:`save_model`.

    A signed folder must be complete and unchanged; with a public key, the folder must be signed by its owner.
    """
    check_release(folder, public_pem)
    for name in ("study.json", "preprocessing.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise ModelFileError(f"{folder}: no {name}; expected the model/ folder of a finished run")
    study = Study.load(folder / "study.json")
    preprocessing = _preprocessing_of(folder, study)
    targets = _targets_of(folder, study, preprocessing) if study.model.head == "text" else None
    learner = build_learner(study, preprocessing, targets)
    load_trainable(learner, load_state(folder / "weights.safetensors"))
    return learner.eval(), study, preprocessing


def _preprocessing_of(folder: Path, study: Study) -> Preprocessing:
    path = folder / "preprocessing.json"
    try:
        found = Preprocessing.from_json(path.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError):
        raise ModelFileError(f"{path}: not a preprocessing; copy or export the model again") from None
    written = digest_text((folder / "study.json").read_text(encoding="utf-8"))  # an older release had fewer fields
    if found.study not in (study.digest, written):
        raise ModelFileError(
            f"{path}: belongs to study {found.study[:12]}..., but study.json beside it is {study.digest[:12]}...; copy"
            " the model/ folder of one run"
        )
    if lacking := [task.name for task in study.tasks if task.name not in found.tasks]:
        raise ModelFileError(f"{path}: lacks task {lacking[0]} of the study; copy or export the model again")
    return found


def _targets_of(folder: Path, study: Study, preprocessing: Preprocessing) -> dict[str, Tensor]:
    path = folder / "label_targets.safetensors"
    found = load_state(path)
    wanted = {name: (count, study.model.output_width) for name, count in _classes(study, preprocessing).items()}
    for name in sorted(set(found) | set(wanted)):
        shape = tuple(found[name].shape) if name in found else None
        if shape != wanted.get(name):
            raise ModelFileError(
                f"{path}: targets of task {name} are {shape or 'absent'}, the study has {wanted.get(name) or 'none'};"
                " copy or export the model again"
            )
    return found

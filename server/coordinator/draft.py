"""A commented ``study.toml`` to begin with: tasks of a cohort, hashes of the frozen encoders, the usual settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from tomlkit.items import AoT, Table

from modaltune.data.genesets import read_gene_sets
from modaltune.encoders.registry import encoder_digest
from modaltune.encoders.text import text_encoder
from modaltune.errors import ConfigError
from modaltune.federation.settings import TrainingSpec
from modaltune.federation.study import Study
from modaltune.federation.task import Label, TaskSpec
from modaltune.storage import canonical_json, write_text
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary

BLANK = "blank"
USUAL_TASKS = ("diagnosis", "stage", "grade", "survival")
_BLANK_TASKS = (
    TaskSpec(
        name="diagnosis",
        kind="nominal",
        template="Histological diagnosis: {text}.",
        labels=(
            Label(value="first", text="what a pathologist would write of the first"),
            Label(value="second", text="what a pathologist would write of the second"),
        ),
    ),
)


@dataclass(frozen=True)
class Encoder:
    """Sizes of a slide encoder, and the groups of layers that get an adapter each."""

    in_width: int
    width: int
    depth: int
    groups: tuple[tuple[int, int], ...]


ENCODERS = {
    "small": Encoder(1536, 64, 2, ((0, 0), (1, 1))),
    "longnet": Encoder(1536, 768, 12, ((0, 3), (4, 7), (8, 11))),
    "titan": Encoder(768, 768, 6, ((0, 1), (2, 3), (4, 5))),
}


def write_study(
    path: Path, cohort: str, roster: Sequence[str], encoder: str, in_width: int | None, gene_sets: Path | None
) -> Study:
    """Write a study that :meth:`Study.load` accepts, and return it.

    Args:
        cohort: a vocabulary in ``configs/labels``, or ``blank``.
        in_width: features per patch, where the encoder leaves a choice.

    Raises:
        ConfigError: the file exists, or the cohort or the encoder is unknown.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists and is not overwritten; choose another --out")
    if encoder not in ENCODERS:
        raise ConfigError(f"slide encoder {encoder!r} is unknown; choose from {', '.join(ENCODERS)}")
    document = tomlkit.document()
    document.add(tomlkit.comment("Draft of a study. Read it, correct it, then run: modaltune-server study check FILE"))
    document.add(tomlkit.comment("Its digest covers every value; hospitals approve the digest."))
    document.add("name", tomlkit.item(cohort))
    document.add("roster", tomlkit.item(list(roster)).comment("names of the hospitals, as in their invitations"))
    document.add("quorum", tomlkit.item(len(roster)).comment("hospitals that every round needs"))
    document.add("deadline_seconds", tomlkit.item(3600).comment("how long a round waits for them"))
    document.add("slides", _slides(encoder, in_width))
    document.add("text", _text())
    document.add("model", _model(encoder))
    document.add("training", _training())
    document.add("privacy", _privacy(len(roster)))
    document.add("tasks", _tasks(cohort))
    if gene_sets is not None:
        document.add(
            "gene_sets", tomlkit.item({name: list(genes) for name, genes in read_gene_sets(gene_sets).items()})
        )
    study = Study.from_json(canonical_json(document.unwrap()))
    write_text(path, tomlkit.dumps(document))
    return study


def _slides(name: str, in_width: int | None) -> Table:
    sizes = ENCODERS[name]
    width = in_width or sizes.in_width
    digest = encoder_digest(name, in_width=width, width=sizes.width, depth=sizes.depth)
    table = tomlkit.table()
    table.add("encoder", tomlkit.item(name).comment("frozen; each hospital loads it from its own disk"))
    table.add("in_width", tomlkit.item(width).comment("features per patch of the patch encoder"))
    table.add(tomlkit.comment("say how patches are made, and hospitals whose feature files say otherwise are refused:"))
    table.add(tomlkit.comment('patch_encoder = "gigapath"'))
    table.add(tomlkit.comment("mpp = 0.5         # micrometres per pixel"))
    table.add(tomlkit.comment("patch_size = 256  # pixels at that resolution"))
    table.add("width", sizes.width)
    table.add("depth", sizes.depth)
    table.add("sha256", digest)
    table.add("standardise", tomlkit.item("feature").comment("pooled mean and deviation of each feature"))
    table.add("max_patches", tomlkit.item(4096).comment("larger bags are subsampled"))
    return table


def _text() -> Table:
    table = tomlkit.table()
    table.add("encoder", tomlkit.item("minilm").comment("embeds the texts of the labels; frozen"))
    table.add("sha256", text_encoder().sha256)
    return table


def _model(encoder: str) -> Table:
    groups = tomlkit.item([list(group) for group in ENCODERS[encoder].groups])
    table = tomlkit.table()
    table.add("groups", groups.comment("first and last layer of each group that shares an adapter"))
    return table


def _training() -> Table:
    usual = TrainingSpec()
    table = tomlkit.table()
    table.add("rounds", usual.rounds)
    table.add("local_epochs", tomlkit.item(usual.local_epochs).comment("passes over the cases in a round; 0.5 = half"))
    table.add("batch_size", usual.batch_size)
    table.add("learning_rate", usual.learning_rate)
    return table


def _privacy(sites: int) -> Table:
    table = tomlkit.table()
    table.add("min_cell", tomlkit.item(5).comment("smaller counts are not reported"))
    table.add(
        "min_contributors", tomlkit.item(min(2, sites)).comment("a parameter with fewer hospitals keeps its old value")
    )
    return table


def _tasks(cohort: str) -> AoT:
    if cohort == BLANK:
        tasks: tuple[TaskSpec, ...] = _BLANK_TASKS
    else:
        known = load_vocabulary(configs_folder() / "labels" / f"{cohort}.toml")
        tasks = tuple(task for task in known if task.name in USUAL_TASKS)
    found = tomlkit.aot()
    for task in tasks:
        table = tomlkit.table()
        for name, value in task.model_dump(mode="json").items():
            if value:
                table.add(name, value)
        found.append(table)
    return found

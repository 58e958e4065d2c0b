"""Training on one machine from one site folder: progress, early stopping, and checkpoints that resume exactly.

The best weights are those with the lowest validation loss, the mean over the study's tasks; training stops after
``patience`` checks without a new best. A checkpoint is one file, written atomically: weights, best weights, optimiser,
torch's generators and the numbers below. An interrupted run that is started again gives the same model as one that was
never interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.data.site import load_site, read_site_config, state_folder
from modaltune.data.slide_settings import check_slides
from modaltune.errors import ConfigError, DataError
from modaltune.federation.capability import check_coverage
from modaltune.federation.statistics import pooled_preprocessing, site_statistics
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, build_learner, load_trainable, save_model
from modaltune.models.modaltune import trainable_state
from modaltune.models.prefix import with_cached_prefix
from modaltune.seeds import derive_seed
from modaltune.step import loss_of
from modaltune.storage import append_json_line, load_state, save_state, write_text
from modaltune.training import (
    fit,
    labelled,
    learning_rate,
    make_optimiser,
    optimiser_state,
    restore_optimiser,
    round_steps,
    training_device,
)
from modaltune.workers import workers

_CHECKPOINT = "checkpoint.safetensors"
_LOG = "training.jsonl"
Say = Callable[[int, int, Mapping[str, Any]], None]


@dataclass(kw_only=True)
class _Numbers:
    """What a checkpoint counts."""

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    since_best: int = 0


class _Stop(Exception):
    """Ends training early."""


class LocalTraining:
    """One study on one site.

    Args:
        study: tasks, model and training settings; ``rounds`` times ``local_epochs`` are the epochs.
        site: site folder.
        out: receives ``model/``, ``training.jsonl`` and, until the end, ``checkpoint.safetensors``.
        checks: validations over the whole training, evenly spaced; each writes a checkpoint.
        patience: checks without a better validation loss before training stops; None = never.
    """

    def __init__(self, study: Study, site: Path, out: Path, *, checks: int = 24, patience: int | None = None) -> None:
        self.out, self.patience, self.peers = out, patience, workers()
        alone = self.peers.count == 1  # several processes have a GPU each
        self.device = training_device(read_site_config(site).compute.device if alone else "auto")
        self.prefix_folder = state_folder(site) / "prefix"
        labels = {task.name: task.values for task in study.tasks if task.kind != "survival"}
        self.cohort = load_site(site, split_salt=study.digest, labels=labels)
        check_slides(self.cohort, study)
        held = tuple(task for task in study.tasks if task.name in self.cohort.tasks)
        if not held:
            raise DataError(f"site {self.cohort.site} labels no task of study {study.name}; see tasks in site.toml")
        self.study = study.among((self.cohort.site,), tasks=held)
        genes = [] if self.cohort.expression is None else sorted(map(str, self.cohort.expression.columns))
        if self.cohort.expression is not None:
            check_coverage(self.cohort.site, genes, study)
        sums = site_statistics(self.cohort, self.study, genes, study.privacy.min_cell)
        self.preprocessing: Preprocessing = pooled_preprocessing({self.cohort.site: sums}, self.study, genes)
        cases = prepare(self.cohort, self.study, self.preprocessing)
        split = self.cohort.cases["split"]
        self.train = labelled([case for case, name in zip(cases, split, strict=True) if name == "train"])
        self.validation = labelled([case for case, name in zip(cases, split, strict=True) if name == "val"])
        if not self.train:
            raise DataError(f"site {self.cohort.site}: no labelled training case; check the split and label columns")
        spec = study.training
        self.steps = round_steps(len(self.train), spec) * spec.rounds
        self.interval = max(1, self.steps // checks)
        self.numbers, self.best = _Numbers(), dict[str, Tensor]()

    def run(self, say: Say | None = None) -> Learner:
        """Train, or go on from the checkpoint in ``out``, and write the best model."""
        learner = build_learner(self.study, self.preprocessing).to(self.device)
        train, validation = self._cached(learner, self.train), self._cached(learner, self.validation)
        optimiser = make_optimiser(learner, self.study.training)
        resumed = self._resume(learner, optimiser)
        started = time.monotonic()

        def after_step(step: int) -> None:
            self.numbers.step = step
            if step % self.interval and step != self.steps:
                return
            row = self._check(learner, validation, step, time.monotonic() - started)
            self._save(learner, optimiser)
            if self.peers.first:
                append_json_line(self.out / _LOG, row)
            if say is not None:
                say(step, self.steps, row)
            if self.patience is not None and self.numbers.since_best >= self.patience:
                raise _Stop

        seed = derive_seed(self.study.seed, "local", self.cohort.site)
        if not (self.patience is not None and self.numbers.since_best >= self.patience):
            with suppress(_Stop):
                fit(
                    learner,
                    train,
                    self.study.training,
                    steps=self.steps,
                    seed=seed,
                    after_step=after_step,
                    optimiser=optimiser,
                    done=resumed,
                )
        load_trainable(learner, self.best or trainable_state(learner))
        if self.peers.first:
            save_model(self.out / "model", learner.cpu(), self.study, self.preprocessing)
            (self.out / _CHECKPOINT).unlink(missing_ok=True)
        self.peers.wait()
        return learner.eval()

    def _cached(self, learner: Learner, cases: Sequence[CaseTensors]) -> list[CaseTensors]:
        spec = self.study.slides
        return with_cached_prefix(
            learner.modaltune, spec.sha256, cases, self.prefix_folder, embedding=spec.cache_embedding
        )

    def _check(self, learner: Learner, validation: Sequence[CaseTensors], step: int, seconds: float) -> dict[str, Any]:
        numbers, loss = self.numbers, None
        if validation:
            learner.eval()
            loss = loss_of(learner, validation, self.study.training.objective)
            learner.train()
            numbers.since_best += 1
            if math.isfinite(loss) and loss < numbers.best_loss:
                numbers.best_loss, numbers.best_step, numbers.since_best = loss, step, 0
                self.best = {name: value.cpu().clone() for name, value in trainable_state(learner).items()}
        return {
            "step": step,
            "val_loss": loss if loss is None or math.isfinite(loss) else None,
            "best_step": numbers.best_step,
            "learning_rate": learning_rate(self.study.training, step / self.steps),
            "seconds": round(seconds, 3),
        }

    def _save(self, learner: Learner, optimiser: torch.optim.Optimizer) -> None:
        state = {f"weights/{name}": value for name, value in trainable_state(learner).items()}
        state |= {f"best/{name}": value for name, value in self.best.items()}
        state |= {f"optimiser/{name}": value for name, value in optimiser_state(learner, optimiser).items()}
        for kind, value in _generators().items():
            state |= {f"generator/{kind}/{rank}": part for rank, part in enumerate(self.peers.gather(value))}
        if not self.peers.first:
            return
        numbers = asdict(self.numbers) | {"best_loss": repr(self.numbers.best_loss)}
        text = json.dumps(self._belongs | numbers)
        state["numbers"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        save_state(self.out / _CHECKPOINT, state)

    @property
    def _belongs(self) -> dict[str, str]:
        """What a checkpoint is of: it goes on with nothing else."""
        table = self.cohort.table_digest
        return {"study": self.study.digest, "preprocessing": self.preprocessing.digest, "cases": table}

    def _resume(self, learner: Learner, optimiser: torch.optim.Optimizer) -> int:
        """Steps behind the checkpoint, which is loaded; 0 without one."""
        path = self.out / _CHECKPOINT
        if not path.is_file():
            if (self.out / _LOG).exists():
                raise ConfigError(f"{self.out} holds a finished training; choose another --out")
            self.peers.wait()
            if self.peers.first:
                write_text(self.out / "study.json", self.study.to_json())
            return 0
        state = load_state(path)
        numbers = json.loads(bytes(state.pop("numbers").tolist()))
        if {name: numbers.pop(name, None) for name in self._belongs} != self._belongs:
            raise ConfigError(
                f"{path} belongs to another study or to other data of this site; choose another --out, or delete it to"
                " start again"
            )
        self.numbers = _Numbers(**{**numbers, "best_loss": float(numbers["best_loss"])})
        self.best = _part(state, "best/")
        load_trainable(learner, _part(state, "weights/"))
        restore_optimiser(learner, optimiser, _part(state, "optimiser/"))
        self._restore_generators(state)
        return self.numbers.step

    def _restore_generators(self, state: Mapping[str, Tensor]) -> None:
        kinds = set(_generators())
        wanted = {f"generator/{kind}/{rank}" for kind in kinds for rank in range(self.peers.count)}
        if wanted != {name for name in state if name.startswith("generator/")}:
            raise ConfigError(
                f"{self.out / _CHECKPOINT} was written by another number or kind of processes; go on with those"
            )
        torch.set_rng_state(state[f"generator/cpu/{self.peers.rank}"])
        if "cuda" in kinds:
            torch.cuda.set_rng_state(state[f"generator/cuda/{self.peers.rank}"])


def _generators() -> dict[str, Tensor]:
    out = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        out["cuda"] = torch.cuda.get_rng_state()
    return out


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

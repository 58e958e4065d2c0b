"""Local training: the same loop at a hospital, for a local-only model and for the pooled upper bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, modalities_of, without_modality
from modaltune.errors import ConfigError, DeviceError
from modaltune.federation.settings import TrainingSpec
from modaltune.hints import with_hints
from modaltune.models.learner import OPTIONAL_PREFIXES, Learner
from modaltune.models.modaltune import trainable_state
from modaltune.seeds import derive_seed, numpy_generator
from modaltune.step import accumulate_gradients, device_of, loss_of, task_weights
from modaltune.workers import workers


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a piece of training did.

    Attributes:
        loss: mean training loss per step; lower is better.
        steps: optimiser steps.
        examples: parameter name -> distinct training cases that exercised it.
    """

    loss: float
    steps: int
    examples: dict[str, int] = field(default_factory=dict)


def epoch_steps(cases: int, batch_size: int) -> int:
    """Optimiser steps of one pass over the cases."""
    return math.ceil(cases / batch_size)


def round_steps(cases: int, spec: TrainingSpec) -> int:
    """Optimiser steps of one round at a site with that many training cases."""
    return max(1, round(epoch_steps(cases, spec.batch_size) * spec.local_epochs)) if cases else 0


def learning_rate(spec: TrainingSpec, progress: float) -> float:
    """Linear warm-up, then a cosine to zero; ``progress`` runs from 0 to 1 over the whole training."""
    if progress < spec.warmup:
        return spec.learning_rate * (0.05 + 0.95 * progress / spec.warmup)
    rest = (progress - spec.warmup) / (1 - spec.warmup)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


def labelled(cases: Sequence[CaseTensors]) -> list[CaseTensors]:
    """Cases with at least one target: the ones that can be trained on."""
    return [case for case in cases if case.targets]


def batches(count: int, batch_size: int, generator: np.random.Generator) -> Iterator[list[int]]:
    """Shuffled passes over ``count`` cases, for ever; the last batch of a pass may be smaller."""
    while True:
        order = generator.permutation(count)
        for start in range(0, count, batch_size):
            yield order[start : start + batch_size].tolist()


def drop_modalities(case: CaseTensors, rate: float, generator: np.random.Generator) -> CaseTensors:
    """Hide one modality of a case that has several, so that the model learns to do without any of them."""
    draw, which = generator.random(2)
    present = modalities_of(case)
    if draw >= rate or len(present) < 2:
        return case
    return without_modality(case, present[int(which * len(present))])


def training_device(name: str = "auto") -> torch.device:
    """The device of a name: ``auto`` is the GPU when this process has one, otherwise the CPU.

    Raises:
        DeviceError: a GPU is named that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(name if name != "auto" else "cuda" if gpus else "cpu")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise DeviceError(
            f"device {name!r}: this machine has {gpus} GPU(s) that torch can use; name another one, or cpu"
        )
    return device


def make_optimiser(learner: Learner, spec: TrainingSpec) -> torch.optim.AdamW:
    """AdamW over the trained parameters; weight decay on weight matrices only.

    Biases, norms, gates, temperatures and learnt tokens keep their size: at zero they say nothing.
    """
    trained = [(name, parameter) for name, parameter in learner.named_parameters() if parameter.requires_grad]
    matrices = {name for name, parameter in trained if parameter.dim() > 1 and name.endswith("weight")}
    groups = [
        {"params": [p for name, p in trained if name in matrices], "weight_decay": spec.weight_decay},
        {"params": [p for name, p in trained if name not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.learning_rate, foreach=True)


def optimiser_state(learner: Learner, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Running averages of an optimiser by parameter name, to go on later: ``<parameter>|<average>``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in learner.named_parameters()}
    return {
        f"{names[parameter]}|{kind}": value.detach().cpu()
        for parameter, state in optimiser.state.items()
        for kind, value in state.items()
    }


def restore_optimiser(learner: Learner, optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimiser_state` gave."""
    parameters = dict(learner.named_parameters())
    for key, value in state.items():
        name, kind = key.split("|")
        parameter = parameters[name]
        optimiser.state[parameter][kind] = value.clone() if kind == "step" else value.to(parameter.device, copy=True)


def fit(
    learner: Learner,
    cases: Sequence[CaseTensors],
    spec: TrainingSpec,
    *,
    steps: int,
    seed: int,
    start: float = 0.0,
    end: float = 1.0,
    after_step: Callable[[int], None] | None = None,
    optimiser: torch.optim.Optimizer | None = None,
    done: int = 0,
    anchored: bool = False,
) -> Outcome:
    """Train in place for a number of optimiser steps.

    Args:
        cases: training cases; those without a target are left out.
        steps: optimiser steps.
        seed: of batch order, dropout and modality dropout.
        start, end: part of the whole training that these steps cover, for the learning rate.
        after_step: called with the number of finished steps.
        optimiser: goes on from its state; None starts a fresh one.
        done: steps that a checkpoint has behind it; their batches are drawn and passed over, and torch's generator is
            taken as the checkpoint left it.
        anchored: hold on to the weights that this training starts from, as strongly as ``spec.proximal`` says, and to
            what they say about tasks without a label, as strongly as ``spec.hints`` says.
    """
    usable = labelled(cases)
    if anchored and spec.hints:
        usable = with_hints(learner, usable)
    peers = workers()
    if not done:
        torch.manual_seed(derive_seed(seed, "dropout", *([peers.rank] if peers.rank else [])))
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    anchors = [parameter.detach().clone() for parameter in parameters] if anchored and spec.proximal else None
    optimiser = make_optimiser(learner, spec) if optimiser is None else optimiser
    device, exercised = device_of(learner), dict[str, set[int]]()
    total = 0.0
    learner.train()
    for step, (members, shown) in enumerate(islice(_shown(usable, spec, seed), steps)):
        if step < done:
            continue
        _note(exercised, learner, members, shown)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spec, start + (end - start) * step / steps)
        total += peers.sum_number(_one_step(learner, parameters, shown, spec, optimiser, anchors), device)
        if not math.isfinite(total):
            raise ConfigError(
                f"training diverged: the loss is not a number at step {step + 1} of {steps}; lower"
                " training.learning_rate"
            )
        if after_step is not None:
            after_step(step + 1)
    return Outcome(loss=total / max(1, steps - done), steps=steps - done, examples=_per_parameter(learner, exercised))


def _one_step(
    learner: Learner,
    parameters: Sequence[torch.nn.Parameter],
    shown: Sequence[CaseTensors],
    spec: TrainingSpec,
    optimiser: torch.optim.Optimizer,
    anchors: Sequence[Tensor] | None,
) -> float:
    """One optimiser step on a batch, of which this process takes its share; returns the loss of that share."""
    peers = workers()
    optimiser.zero_grad(set_to_none=True)
    weights = task_weights(shown, spec.hints)
    loss = accumulate_gradients(learner, peers.share(shown), spec.objective, weights=weights)
    peers.sum_gradients(parameters)
    if anchors is not None:
        _pull(parameters, anchors, spec.proximal)
    torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm or math.inf)
    optimiser.step()
    return loss


def _note(
    exercised: dict[str, set[int]], learner: Learner, members: Sequence[int], shown: Sequence[CaseTensors]
) -> None:
    """Remember which cases reached which optional part of the model; "" stands for the rest."""
    for member, case in zip(members, shown, strict=True):
        for prefix in {"", *learner.exercised_by(case)}:
            exercised.setdefault(prefix, set()).add(member)


def _pull(parameters: Sequence[Tensor], anchors: Sequence[Tensor], strength: float) -> None:
    """Add the gradient of FedProx's term: ``strength`` times the distance from the anchors."""
    for parameter, anchor in zip(parameters, anchors, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor, alpha=strength)


def _shown(
    usable: Sequence[CaseTensors], spec: TrainingSpec, seed: int
) -> Iterator[tuple[list[int], list[CaseTensors]]]:
    """What each step is shown, for ever: places of its cases, and these with patches drawn and modalities hidden."""
    generator = numpy_generator(seed, "batches")
    for step, members in enumerate(batches(len(usable), spec.batch_size, generator)):
        draw = derive_seed(seed, "patches", step // epoch_steps(len(usable), spec.batch_size))
        drawn = [usable[i].resampled(draw) for i in members]
        yield members, [drop_modalities(case, spec.modality_dropout, generator) for case in drawn]


def _per_parameter(learner: Learner, exercised: dict[str, set[int]]) -> dict[str, int]:
    """Cases per parameter: those of its optional part, or all."""
    out = {}
    for name in trainable_state(learner):
        part = next((part for part in exercised if part and f"{name}.".startswith(f"{part}.")), None)
        optional = name.startswith(OPTIONAL_PREFIXES)
        out[name] = len(exercised[part]) if part else 0 if optional else len(exercised[""])
    return out


def evaluation_loss(learner: Learner, cases: Sequence[CaseTensors], objective: str) -> tuple[float, int]:
    """Loss of the labelled cases times their number, and that number; nothing is dropped."""
    usable = labelled(cases)
    learner.eval()
    return (loss_of(learner, usable, objective) * len(usable) if usable else 0.0), len(usable)


def fit_and_average(
    learner: Learner, cases: Sequence[CaseTensors], spec: TrainingSpec, *, steps: int, seed: int, share: float = 0.2
) -> Outcome:
    """Train and leave an exponential average of the weights with a memory of about ``share`` of the steps.

    A federation averages weights by its nature; this gives a model trained in one place the same calm end.
    """
    current = trainable_state(learner)
    mean = {name: value.clone() for name, value in current.items()}
    rate = min(1.0, 1 / (share * steps))

    def after_step(_: int) -> None:
        for name, value in current.items():
            mean[name].lerp_(value, rate)

    outcome = fit(learner, cases, spec, steps=steps, seed=seed, after_step=after_step)
    _put(learner, mean)
    return outcome


def _put(learner: Learner, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in trainable_state(learner).items():
            value.copy_(state[name])


def fit_and_select(
    learner: Learner,
    train: Sequence[CaseTensors],
    validation: Sequence[CaseTensors],
    spec: TrainingSpec,
    *,
    steps: int,
    seed: int,
    checks: int = 24,
    start: float = 0.0,
) -> Outcome:
    """Train and keep the weights with the lowest validation loss among evenly spaced checks (ties: the earlier).

    Without validation cases the last weights are kept.

    Args:
        start: part of the whole training that the model has behind it; the weights it comes with are then a choice too.
    """
    interval = max(1, steps // checks)
    best: tuple[float, dict[str, Tensor]] | None = None

    def check(done: int) -> None:
        nonlocal best
        if done % interval and done != steps:
            return
        total, count = evaluation_loss(learner, validation, spec.objective)
        learner.train()
        if count and math.isfinite(total) and (best is None or total / count < best[0]):
            best = total / count, {name: value.clone() for name, value in trainable_state(learner).items()}

    chosen = check if labelled(validation) else None
    if start and chosen:
        chosen(0)
    outcome = fit(learner, train, spec, steps=steps, seed=seed, start=start, after_step=chosen)
    if best is not None:
        _put(learner, best[1])
    return outcome

"""Where results go beside the run folders: a JSON-lines log always, TensorBoard, MLflow and Weights & Biases if asked.

A tracker is told about each cell once, when it is complete, so an interrupted study leaves no half-filled run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from modaltune.errors import ConfigError
from modaltune.storage import append_json_line


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished cell.

    Attributes:
        study, cell: names.
        settings: flat, ``training.wire`` -> value.
        rounds: training round -> values, such as ``loss`` and ``megabytes``.
        scores: ``federated/diagnosis/auc`` -> value, on everybody's test cases.
    """

    study: str
    cell: str
    settings: Mapping[str, str | float | bool]
    rounds: Sequence[tuple[int, Mapping[str, float]]]
    scores: Mapping[str, float]


class Tracker(Protocol):
    """Receives finished cells."""

    def record(self, cell: Record) -> None:
        """Keep one cell; telling it again replaces nothing, so it is told once."""


class JsonLines:
    """``log.jsonl``: one object a cell."""

    def __init__(self, out: Path) -> None:
        self.path = out / "log.jsonl"

    def record(self, cell: Record) -> None:
        rounds = [{"round": number, **values} for number, values in cell.rounds]
        append_json_line(self.path, vars(cell) | {"rounds": rounds, "settings": dict(cell.settings)})


class TensorBoard:
    """Event files in ``tensorboard/CELL``; ``tensorboard --logdir`` shows them."""

    def __init__(self, out: Path) -> None:
        self.writer = _module("tensorboard", "torch.utils.tensorboard").SummaryWriter
        self.out = out / "tensorboard"

    def record(self, cell: Record) -> None:
        with self.writer(log_dir=str(self.out / cell.cell)) as writer:
            for number, values in cell.rounds:
                for name, value in values.items():
                    writer.add_scalar(f"round/{name}", value, number)
            for name, value in cell.scores.items():
                writer.add_scalar(f"score/{name}", value, 0)
            writer.add_text("settings", "```\n" + json.dumps(dict(cell.settings), indent=1) + "\n```")


class MLflow:
    """A run a cell; the address is ``$MLFLOW_TRACKING_URI``, by default ``mlflow.db`` in the study's folder."""

    def __init__(self, out: Path) -> None:
        self.mlflow, self.out = _module("mlflow", "mlflow"), out

    def record(self, cell: Record) -> None:
        if not self.mlflow.environment_variables.MLFLOW_TRACKING_URI.is_set():
            self.mlflow.set_tracking_uri(f"sqlite:///{(self.out / 'mlflow.db').resolve()}")
        self.mlflow.set_experiment(cell.study)
        with self.mlflow.start_run(run_name=cell.cell):
            self.mlflow.log_params(dict(cell.settings))
            for number, values in cell.rounds:
                self.mlflow.log_metrics(dict(values), step=number)
            self.mlflow.log_metrics(dict(cell.scores))


class WeightsAndBiases:
    """A run a cell; ``WANDB_MODE=offline`` keeps it in the study's folder."""

    def __init__(self, out: Path) -> None:
        self.wandb, self.out = _module("wandb", "wandb"), out

    def record(self, cell: Record) -> None:
        run = self.wandb.init(project=cell.study, name=cell.cell, config=dict(cell.settings), dir=str(self.out))
        for number, values in cell.rounds:
            run.log({f"round/{name}": value for name, value in values.items()}, step=number)
        run.summary.update({f"score/{name}": value for name, value in cell.scores.items()})
        run.finish()


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def open_trackers(names: Sequence[str], out: Path) -> dict[str, Tracker]:
    """The log and the trackers asked for.

    Raises:
        ConfigError: a tracker is unknown, or its package is not installed.
    """
    if unknown := [name for name in names if name not in TRACKERS]:
        raise ConfigError(f"unknown tracker {unknown[0]!r}; choose from {', '.join(TRACKERS)}")
    return {name: TRACKERS[name](out) for name in dict.fromkeys(("jsonl", *names))}


def _module(extra: str, name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"tracker {extra!r} is not installed; pip install 'modaltune-federated[{extra}]', or take it out of"
            " 'trackers'"
        ) from error

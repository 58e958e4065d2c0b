from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from modaltune.data.cohort import Cohort
from modaltune.federation.study import Study
from server.rounds import Federation
from simulation.engine import run_federation
from tests.integration.grids import LocalGrid
from tests.integration.helpers import Finished, make_study, read_rounds

pytestmark = pytest.mark.integration


class ShuffledGrid(LocalGrid):
    """Gives nodes to the sites in the opposite order and replies in any order."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        super().__init__(dict(reversed(folders.items())), first_node=7)
        self.order = random.Random(3)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        return self.order.sample(replies, len(replies))


def run_here(study: Study, grid: LocalGrid, folder: Path) -> Finished:
    return Finished(result=Federation(grid, study, folder).run(), folder=folder)


def figures(finished: Finished) -> list[dict[str, Any]]:
    """The round log without what a clock or the size of a message says."""
    drop = ("seconds", "bytes_down", "bytes_up")
    return [{name: value for name, value in row.items() if name not in drop} for row in finished.rounds]


def test_the_same_seed_gives_the_same_weights_and_metrics(
    federation: Finished, study: Study, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    again = Finished(result=run_federation(study, hospitals, tmp_path), folder=tmp_path)
    assert again.result.weights_hash == federation.result.weights_hash
    assert figures(again) == figures(federation)
    for name in ("study.json", "preprocessing.json", "model/weights.safetensors", "model/label_targets.safetensors"):
        assert (again.folder / name).read_bytes() == (federation.folder / name).read_bytes()


def test_neither_processes_nor_node_numbers_nor_the_order_of_replies_matter(
    federation: Finished, study: Study, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    other = run_here(study, ShuffledGrid(hospitals), tmp_path)
    assert other.result.weights_hash == federation.result.weights_hash
    assert figures(other) == figures(federation)


def test_another_seed_gives_other_weights(
    federation: Finished, cohorts: dict[str, Cohort], hospitals: dict[str, Path], tmp_path: Path
) -> None:
    study = make_study(cohorts, hospitals["H1"].parent / "gene_sets.gmt", seed=1)
    other = run_here(study, LocalGrid(hospitals), tmp_path)
    assert other.result.weights_hash != federation.result.weights_hash
    assert [row.get("loss") for row in read_rounds(tmp_path)] != [row.get("loss") for row in federation.rounds]

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modaltune.data.batch import CaseTensors
from modaltune.data.fewer_patches import FEWEST, fewer, with_fewer_patches
from modaltune.errors import DeviceError


class OnDisk:
    """A case of ten patches on disk, whose values say which row they are."""

    count, nbytes, fixed = 10, 400, True

    def __init__(self, tokens: bool = False) -> None:
        rows = torch.arange(10.0).repeat(2, 1).T
        self.fields = {"cells": rows.long(), "tokens" if tokens else "patches": rows}
        if tokens:
            self.fields["tokens"] = torch.cat([torch.full((1, 2), -1.0), rows])

    def load(self) -> dict[str, torch.Tensor]:
        return dict(self.fields)

    def resampled(self, seed: int) -> OnDisk:
        return self


@pytest.fixture
def case(tiny_cases: list[CaseTensors]) -> CaseTensors:
    first = tiny_cases[0]
    return replace(first, patches=first.patches[:0], cells=first.cells[:0], tokens=None, stored=OnDisk())


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("tokens", [True, False])
def test_a_case_keeps_some_rows_with_their_places(case: CaseTensors, stored: bool, tokens: bool) -> None:
    whole = replace(case, stored=OnDisk(tokens))
    some = with_fewer_patches(whole if stored else whole.loaded(), 4, seed=1)
    assert some.patch_count == 4
    loaded = some.loaded()
    rows = loaded.patches if loaded.tokens is None else loaded.tokens[1:]
    assert torch.equal(rows, loaded.cells.float())
    assert len(set(rows[:, 0].tolist())) == 4
    assert loaded.tokens is None or loaded.tokens[0].tolist() == [-1, -1]
    assert torch.equal(with_fewer_patches(whole, 4, seed=1).loaded().cells, loaded.cells), "the same rows every time"


def test_halving_twice_takes_from_the_whole_case_again(case: CaseTensors) -> None:
    twice = with_fewer_patches(with_fewer_patches(case, 4, seed=1), 2, seed=1)
    assert twice.loaded().cells.tolist() == with_fewer_patches(case, 2, seed=1).loaded().cells.tolist()


def test_a_small_case_stays_as_it_is(case: CaseTensors) -> None:
    assert with_fewer_patches(case, 10, seed=1) is case


def test_the_number_is_halved_down_to_a_floor() -> None:
    assert fewer(4096) == 2048
    assert fewer(2 * FEWEST) == FEWEST
    with pytest.raises(DeviceError, match="batch_size"):
        fewer(2 * FEWEST - 1)

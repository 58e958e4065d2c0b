from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from modaltune.seeds import derive_seed, fill_uniform, numpy_generator

names = st.lists(st.one_of(st.integers(0, 99), st.text("abcH", min_size=1, max_size=4)), max_size=3)


@given(root=st.integers(0, 2**31), names=names)
def test_a_seed_is_a_function_of_its_names_that_torch_and_numpy_accept(root: int, names: list[object]) -> None:
    seed = derive_seed(root, *names)
    assert seed == derive_seed(root, *names)
    assert 0 <= seed < 2**63


def test_each_part_of_the_name_matters() -> None:
    seeds = [
        derive_seed(0),
        derive_seed(1),
        derive_seed(0, "train"),
        derive_seed(0, "train", "H1"),
        derive_seed(0, "train", "H2"),
        derive_seed(0, "train", "H1", 1),
        derive_seed(0, "train", "H1", 2),
        derive_seed(0, "H1", "train"),
    ]
    assert len(set(seeds)) == len(seeds)


def test_seeds_do_not_change_between_versions() -> None:
    # The first eight bytes of sha256("0/train/H1/3"), without the sign bit: released studies depend on them.
    assert derive_seed(0, "train", "H1", 3) == 0x15B49B22F9FF7BE2


def test_generators_of_one_name_draw_the_same_numbers() -> None:
    assert np.array_equal(numpy_generator(3, "a").random(4), numpy_generator(3, "a").random(4))
    assert not np.array_equal(numpy_generator(3, "a").random(4), numpy_generator(3, "b").random(4))


def test_uniform_filling_stays_in_its_bounds_and_is_the_same_every_time() -> None:
    first, second = torch.zeros(50, 4), torch.zeros(50, 4)
    fill_uniform(first, 0.1, numpy_generator(3, "a"))
    fill_uniform(second, 0.1, numpy_generator(3, "a"))
    assert torch.equal(first, second)
    assert 0.05 < float(first.abs().max()) <= 0.1

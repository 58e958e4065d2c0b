from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modaltune.federation.average import State, Update, keywise_average, shortened, squared_changes

KEYS = {"gene_encoder": (2, 3), "task": (4,), "scale": ()}


def a_state(seed: int) -> State:
    draw = np.random.default_rng(seed)
    return {key: np.asarray(draw.normal(size=shape), dtype=np.float32) for key, shape in KEYS.items()}


def an_update(seed: int, **examples: int) -> Update:
    return Update(arrays=a_state(seed), examples={key: examples.get(key, 5) for key in KEYS})


counts = st.lists(st.fixed_dictionaries({key: st.integers(0, 50) for key in KEYS}), min_size=1, max_size=5)


@given(counts=counts)
@settings(deadline=None)
def test_each_parameter_is_the_weighted_mean_of_its_contributors(counts: list[dict[str, int]]) -> None:
    updates = {f"H{seed}": an_update(seed, **examples) for seed, examples in enumerate(counts)}
    previous = a_state(99)
    new = keywise_average(updates, previous)
    assert list(new) == list(previous)
    for key in KEYS:
        weights = [examples[key] for examples in counts]
        expected = previous[key]
        if any(weights):
            expected = np.average([update.arrays[key] for update in updates.values()], axis=0, weights=weights)
        np.testing.assert_allclose(new[key], expected, rtol=1e-6, atol=1e-6)
        assert new[key].dtype == np.float32
        assert new[key].shape == KEYS[key]


def test_a_site_without_examples_of_a_parameter_has_no_influence_on_it() -> None:
    updates = {"A": an_update(1), "B": an_update(2, gene_encoder=0)}
    wild = replace(updates["B"], arrays={key: value * 1e6 for key, value in updates["B"].arrays.items()})
    plain, other = (keywise_average({**updates, "B": update}, a_state(0)) for update in (updates["B"], wild))
    assert np.array_equal(plain["gene_encoder"], other["gene_encoder"])
    assert np.array_equal(plain["gene_encoder"], updates["A"].arrays["gene_encoder"])
    assert not np.allclose(plain["task"], other["task"])


def test_weights_are_the_cases_of_that_parameter() -> None:
    updates = {"A": an_update(1, task=30), "B": an_update(2, task=10)}
    new = keywise_average(updates, a_state(0))
    np.testing.assert_allclose(
        new["task"], 0.75 * updates["A"].arrays["task"] + 0.25 * updates["B"].arrays["task"], rtol=1e-5
    )


def test_a_parameter_that_nobody_trained_keeps_its_value() -> None:
    previous = a_state(0)
    new = keywise_average({"A": an_update(1, task=0), "B": an_update(2, task=0)}, previous)
    assert np.array_equal(new["task"], previous["task"])
    assert not np.array_equal(new["scale"], previous["scale"])
    assert all(np.array_equal(value, previous[key]) for key, value in keywise_average({}, previous).items())


@pytest.mark.parametrize(("minimum", "kept"), [(1, False), (2, False), (3, True)])
def test_too_few_contributors_keep_the_old_value(minimum: int, kept: bool) -> None:
    updates = {"A": an_update(1), "B": an_update(2), "C": an_update(3, task=0)}
    previous = a_state(0)
    new = keywise_average(updates, previous, min_contributors=minimum)
    assert np.array_equal(new["task"], previous["task"]) == kept
    assert not np.array_equal(new["scale"], previous["scale"])


@given(order=st.permutations(["A", "B", "C", "D"]))
@settings(deadline=None)
def test_the_order_in_which_replies_arrive_changes_no_bit(order: list[str]) -> None:
    updates = {name: an_update(seed, task=seed + 1) for seed, name in enumerate("ABCD")}
    expected = keywise_average(updates, a_state(0))
    found = keywise_average({name: updates[name] for name in order}, a_state(0))
    assert all(np.array_equal(found[key], expected[key]) for key in KEYS)


def test_equal_updates_average_to_themselves() -> None:
    update = an_update(1)
    new = keywise_average(
        {name: replace(update, examples=dict.fromkeys(KEYS, n)) for name, n in zip("ABC", (1, 7, 3), strict=True)},
        a_state(0),
    )
    for key, value in update.arrays.items():
        np.testing.assert_allclose(new[key], value, rtol=1e-6)


def test_squared_changes_count_only_what_the_site_trained() -> None:
    previous, update = a_state(0), an_update(1, gene_encoder=0)
    parts = [update.arrays[key] - previous[key] for key in ("task", "scale")]
    assert list(squared_changes(update, previous).values()) == pytest.approx([float(np.sum(part**2)) for part in parts])


def test_a_shortened_update_keeps_its_direction() -> None:
    previous, update = a_state(0), an_update(1)
    short = shortened(update, previous, 0.25)
    longer, shorter = squared_changes(update, previous), squared_changes(short, previous)
    assert shorter == pytest.approx({key: 0.25**2 * square for key, square in longer.items()}, rel=1e-5)
    for key in KEYS:
        np.testing.assert_allclose(
            short.arrays[key] - previous[key], 0.25 * (update.arrays[key] - previous[key]), rtol=1e-4, atol=1e-6
        )

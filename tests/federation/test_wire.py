from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from modaltune.errors import ConfigError, ReplyRefused
from modaltune.federation.average import State
from modaltune.federation.manifest import Manifest
from modaltune.federation.wire import (
    FORMS,
    SCALES,
    SEALED,
    Packed,
    decode_update,
    decode_weights,
    encode_update,
    encode_weights,
    message_manifest,
    pack,
    seal,
    unpack,
    unseal,
)

SHAPES = {"weight": (7, 300), "bias": (513,), "scale": (), "empty": (0,)}
TRAINING = Manifest(shapes=SHAPES)
RELATIVE = {"fp32": 0.0, "fp16": 2**-11, "int8": 1 / 254}


def a_state(seed: int, size: float = 1.0) -> State:
    draw = np.random.default_rng(seed)
    return {name: np.asarray(size * draw.normal(size=shape), dtype=np.float32) for name, shape in SHAPES.items()}


def largest_error(found: State, expected: State) -> float:
    """Relative to the largest value of each tensor."""
    return max(
        float(np.abs(found[name] - value).max() / np.abs(value).max()) for name, value in expected.items() if value.size
    )


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 50), size=st.sampled_from([1e-4, 1.0, 300.0]))
@settings(max_examples=20, deadline=None)
def test_what_comes_back_is_as_near_as_the_form_allows(form: str, seed: int, size: float) -> None:
    values = a_state(seed, size)
    packed = pack(form, values)
    message_manifest(form, TRAINING).check("H1", packed)
    back = unpack(form, packed, SHAPES)
    assert {name: value.shape for name, value in back.items()} == SHAPES
    for name, value in values.items():
        allowed = 1.01 * RELATIVE[form] * np.abs(value).max(initial=0) + 2.0**-25  # fp16 steps are never below 2^-24
        assert np.abs(back[name] - value).max(initial=0) <= allowed, name


def record(content: bytes, **changes: object) -> dict[str, object]:
    """What Flower hands over: the array of a record, with the bytes that it came in."""
    whole = np.frombuffer(content, np.uint8)
    return {SEALED: SimpleNamespace(**{"data": bytes(whole.nbytes), "numpy": lambda: whole} | changes)}


def test_arrays_travel_as_one_and_come_back_as_they_were() -> None:
    arrays = {"scale": np.float32(3).reshape(()), "weight": np.arange(6, dtype=np.float16).reshape(2, 3).T}
    sealed = seal(arrays)
    assert set(sealed) == {SEALED}
    found = unseal(record(sealed[SEALED].tobytes()), "H1")
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        name: (value.shape, value.dtype) for name, value in arrays.items()
    }
    assert all(np.array_equal(found[name], value) for name, value in arrays.items())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, "not one safetensors file"),
        ({"weight": None}, "not one safetensors file"),
        (record(b"rubbish"), "unreadable"),
        (record(b"\xff" * 8 + b"{}"), "unreadable"),
        (record(save({"weight": np.zeros(3)})[:-1]), "unreadable"),
        (record(save({"weight": np.zeros(3)}) + b"more"), "unreadable"),
        (record(save({"weight": np.zeros(3)}), data=bytes(9000)), "holds more than its arrays"),
        (record(save({"weight": np.zeros(3)}), data=bytes(99000)), "larger than 10000 bytes"),
        (record(b"", numpy=lambda: "text"), "unreadable"),
        (record(b"", numpy=lambda: np.zeros((2, 2), np.uint8)), "holds more than its arrays"),
    ],
)
def test_a_record_that_is_no_sealed_one_is_refused(broken: dict[str, object], message: str) -> None:
    with pytest.raises(ReplyRefused, match=message):
        unseal(broken, "H1", most_bytes=10_000)


def test_zeros_stay_zeros() -> None:
    zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    for form in FORMS:
        back = unpack(form, pack(form, zeros), SHAPES)
        assert all(not value.any() for value in back.values())


def test_a_value_beyond_half_precision_is_one_clear_line() -> None:
    values = a_state(0) | {"bias": np.full(513, 1e6, dtype=np.float32)}
    with pytest.raises(ConfigError, match=r"^bias does not fit fp16 \(beyond 65504\)"):
        pack("fp16", values)


def infinite(packed: Packed) -> Packed:
    return packed | {"weight": np.full((7, 300), np.inf, dtype=packed["weight"].dtype)}


def without_scales(packed: Packed) -> Packed:
    return {name: value for name, value in packed.items() if name != SCALES}


def endless_scales(packed: Packed) -> Packed:
    return packed | {SCALES: packed[SCALES] * np.float32(np.nan)}


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("fp16", infinite, "weight is not finite"),
        ("int8", without_scales, r"1 array\(s\) missing, first scales"),
        ("int8", endless_scales, "scales is not finite"),
        ("int8", lambda packed: packed | {"weight": np.zeros((7, 300), np.float16)}, r"weight is float16.*not int8"),
        ("fp16", lambda packed: packed | {SCALES: np.zeros(3, np.float32)}, r"1 array\(s\) outside the manifest"),
    ],
)
def test_a_message_that_does_not_fit_is_refused(form: str, change: object, message: str) -> None:
    with pytest.raises(ReplyRefused, match=message):
        message_manifest(form, TRAINING).check("H1", change(pack(form, a_state(0))))  # type: ignore[operator]


@pytest.mark.parametrize("form", FORMS)
def test_a_round_brings_weights_there_and_changes_back(form: str) -> None:
    start, weights, step = a_state(0), a_state(0), a_state(1, 1e-3)
    for name in weights:
        weights[name] = weights[name] + a_state(2, 1e-2)[name]
    received = decode_weights(form, encode_weights(form, weights, start), start)
    trained = {name: value + step[name] for name, value in received.items()}
    packed, _ = encode_update(form, trained, received, {})
    counted = decode_update(form, packed, weights)
    change = {name: counted[name] - (received if form == "fp32" else weights)[name] for name in weights}
    assert largest_error(change, step) < 0.01


def test_rounding_of_the_weights_on_the_way_down_is_not_lost_at_the_server() -> None:
    weights, start = a_state(0), a_state(3)
    received = decode_weights("int8", encode_weights("int8", weights, start), start)
    assert largest_error(received, weights) > 1e-4
    packed, _ = encode_update("int8", received, received, {})
    assert largest_error(decode_update("int8", packed, weights), weights) == 0


def test_what_rounding_takes_from_a_reply_is_in_the_next_ones() -> None:
    received, step = a_state(0), a_state(1, 1e-3)
    trained = {name: value + step[name] for name, value in received.items()}
    wanted = {name: trained[name] - received[name] for name in received}
    kept: State = {}
    total = {name: np.zeros_like(value) for name, value in received.items()}
    errors = []
    for number in range(1, 9):
        packed, kept = encode_update("int8", trained, received, kept)
        for name, value in unpack("int8", packed, SHAPES).items():
            total[name] = total[name] + value
        errors.append(largest_error({name: value / number for name, value in total.items()}, wanted))
    assert errors[-1] < errors[0] / 4
    assert not encode_update("fp16", trained, received, {})[1]

"""How trained weights travel: fp32, fp16, or int8 with one scale a block.

===== ======================= =========================================
form  to the sites            back to the server
===== ======================= =========================================
fp32  weights                 weights
fp16  weights                 change of the weights received
int8  change since the start  change of the weights received, and what
                              earlier rounding left behind
===== ======================= =========================================

The server adds changes to its own fp32 weights, so rounding on the way down is not lost, and a site keeps what rounding
took from its reply and adds it to the next one (error feedback). Every message stands alone: a site that missed rounds
needs nothing from them.

All arrays of a record travel as one, a safetensors file in memory: Flower stores, counts and transfers every array of a
message by itself, which costs far more than the bytes of small ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from modaltune.errors import ConfigError, ReplyRefused
from modaltune.federation.average import State
from modaltune.federation.manifest import Manifest

FORMS = ("fp32", "fp16", "int8")
SCALES, SEALED = "scales", "safetensors"
_BLOCK, _HEADER, _ENTRY = 512, 4096, 96
_UNREADABLE = (SafetensorError, AttributeError, LookupError, ValueError, TypeError, EOFError, OSError, MemoryError)
Packed = dict[str, NDArray[np.generic]]
_DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


def pack(form: str, values: Mapping[str, NDArray[np.float32]]) -> Packed:
    """Values as they travel; :class:`ConfigError` when one does not fit."""
    if form == "fp32":
        return dict(values)
    if form == "fp16":
        with np.errstate(over="ignore"):
            halves: Packed = {name: value.astype(np.float16) for name, value in values.items()}
        if wide := next((name for name, value in halves.items() if not np.isfinite(value).all()), None):
            raise ConfigError(f"{wide} does not fit fp16 (beyond 65504); train with wire = 'fp32' or a lower rate")
        return halves
    packed, scales = Packed(), []
    for name in sorted(values):
        blocks = _blocks(values[name])
        scale = np.abs(blocks).max(axis=1) / 127
        codes = np.rint(blocks / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
        packed[name] = codes.reshape(-1)[: values[name].size].reshape(values[name].shape)
        scales.append(scale.astype(np.float32))
    packed[SCALES] = np.concatenate(scales)
    return packed


def unpack(form: str, packed: Mapping[str, NDArray[np.generic]], shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Values of a message that fits :func:`message_manifest`."""
    if form != "int8":
        return {name: np.asarray(packed[name], dtype=np.float32) for name in shapes}
    out, start = State(), 0
    for name in sorted(shapes):
        blocks = _blocks(np.asarray(packed[name], dtype=np.float32))
        scale = np.asarray(packed[SCALES][start : start + len(blocks)], dtype=np.float32)
        out[name] = (blocks * scale[:, None]).reshape(-1)[: packed[name].size].reshape(shapes[name])
        start += len(blocks)
    return out


def message_manifest(form: str, training: Manifest) -> Manifest:
    """Manifest of the arrays as they travel; the norm bound applies to the weights they stand for."""
    shapes = dict(training.shapes)
    if form != "int8":
        return Manifest(shapes=shapes, dtype=_DTYPES[form])
    blocks = sum(math.ceil(math.prod(shape) / _BLOCK) for shape in shapes.values())
    return Manifest(shapes=shapes | {SCALES: (blocks,)}, dtype="int8", dtypes={SCALES: "float32"})


def encode_weights(form: str, weights: State, start: State) -> Packed:
    """Weights for the sites; ``start`` are the study's initial weights."""
    return pack(form, _minus(weights, start) if form == "int8" else weights)


def decode_weights(form: str, packed: Packed, start: State) -> State:
    """Weights as a site sees them."""
    values = unpack(form, packed, {name: value.shape for name, value in start.items()})
    return _plus(start, values) if form == "int8" else values


def encode_update(
    form: str, trained: State, received: State, kept: Mapping[str, NDArray[np.float32]]
) -> tuple[Packed, State]:
    """A site's reply and what rounding took from it (empty unless int8).

    Args:
        trained, received: weights after and before local training.
        kept: what rounding took from the site's last reply.
    """
    if form == "fp32":
        return pack(form, trained), {}
    change = _minus(trained, received)
    if form == "fp16":
        return pack(form, change), {}
    wanted = {name: value + kept.get(name, np.float32(0)) for name, value in change.items()}
    packed = pack(form, wanted)
    return packed, _minus(wanted, unpack(form, packed, {name: value.shape for name, value in wanted.items()}))


def decode_update(form: str, packed: Packed, weights: State) -> State:
    """A site's trained weights as the server counts them; ``weights`` are the server's own before the round."""
    values = unpack(form, packed, {name: value.shape for name, value in weights.items()})
    return values if form == "fp32" else _plus(weights, values)


def seal(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.uint8]]:
    """All arrays of a record as the one array that travels."""
    return {SEALED: np.frombuffer(save({name: np.asarray(arrays[name], order="C") for name in arrays}), np.uint8)}


def sealed_size(manifest: Manifest) -> tuple[float, int]:
    """Bytes of a sealed record that fits a manifest, at most, and of the list of names at its beginning."""
    header = _HEADER + sum(len(name) + _ENTRY for name in manifest.shapes)
    return manifest.megabytes * 1e6 + header, header


def unseal(
    record: Mapping[str, Any], sender: str, most_bytes: float = math.inf, most_header: float = math.inf
) -> Packed:
    """The arrays of a record that :func:`seal` made.

    Args:
        record: Flower's: name -> something with ``numpy()`` and ``data``.
        most_bytes, most_header: a larger record, or list of names, is refused before it is read.
    Raises:
        ReplyRefused: it is not one; nothing of its content is quoted.
    """
    if set(record) != {SEALED}:
        raise ReplyRefused(sender, "a record of arrays is not one safetensors file")
    sealed = record[SEALED]
    if len(sealed.data) > most_bytes + _HEADER:
        raise ReplyRefused(sender, f"a record of arrays is larger than {most_bytes:.0f} bytes")
    try:
        content = sealed.numpy()
        if content.dtype != np.uint8 or content.ndim != 1 or len(sealed.data) > content.nbytes + _HEADER:
            raise ReplyRefused(sender, "a record of arrays holds more than its arrays")
        whole = content.tobytes()
        if int.from_bytes(whole[:8], "little") > most_header:
            raise ReplyRefused(sender, "a record of arrays names more than its arrays")
        return dict(load(whole))
    except (*_UNREADABLE, BadZipFile):
        raise ReplyRefused(sender, "a record of arrays is unreadable") from None


def read_arrays(record: Mapping[str, Any], manifest: Manifest, sender: str) -> Packed:
    """The arrays of a record, once they are known to fit a manifest.

    Raises:
        ReplyRefused: they do not. The reason quotes the manifest, never the message.
    """
    found = unseal(record, sender, *sealed_size(manifest))
    manifest.check(sender, found)
    return {name: np.ascontiguousarray(found[name]).reshape(shape) for name, shape in manifest.shapes.items()}


def read_floats(record: Mapping[str, Any], manifest: Manifest, sender: str) -> dict[str, NDArray[np.float64]]:
    """:func:`floats` of :func:`read_arrays`."""
    return floats(read_arrays(record, manifest, sender))


def floats(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """Arrays as float64 with but one zero: the sign of a zero tells nobody anything."""
    return {name: np.asarray(value, np.float64) + 0.0 for name, value in arrays.items()}


def _blocks(value: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = value.reshape(-1)
    return np.pad(flat, (0, -len(flat) % _BLOCK)).reshape(-1, _BLOCK)


def _minus(a: Mapping[str, NDArray[np.float32]], b: Mapping[str, NDArray[np.float32]]) -> State:
    return {name: np.asarray(value - b[name], dtype=np.float32) for name, value in a.items()}


def _plus(a: Mapping[str, NDArray[np.float32]], b: Mapping[str, NDArray[np.float32]]) -> State:
    return {name: np.asarray(value + b[name], dtype=np.float32) for name, value in a.items()}

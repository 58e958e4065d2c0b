"""Honest replies made bad; both a hostile hospital and a malicious client app use them. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, Message, RecordDict
from safetensors.numpy import load, save

PATIENT = "SYN-H5-0003"
FILE = f"/data/features/{PATIENT}.h5"
HUGE = 70_000_000
Change = Callable[[RecordDict, RecordDict], None]


@dataclass(frozen=True, kw_only=True)
class Tamper:
    """What is done to a reply, given the question, and why the server should refuse it (a regular expression)."""

    change: Change
    refused: str


SEALED = "safetensors"


class Arrays(MutableMapping[str, np.ndarray]):
    """The arrays in a record of a message, to look at and to change."""

    def __init__(self, content: RecordDict, record: str = "arrays") -> None:
        self.record = content.array_records[record]

    def _all(self) -> dict[str, np.ndarray]:
        return dict(load(self.record[SEALED].numpy().tobytes()))

    def _seal(self, arrays: dict[str, np.ndarray]) -> None:
        self.record[SEALED] = Array(np.frombuffer(save(arrays), np.uint8))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._all()[name]

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        self._seal({**self._all(), name: np.asarray(value, order="C")})

    def __delitem__(self, name: str) -> None:
        self._seal({key: value for key, value in self._all().items() if key != name})

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _first(content: RecordDict) -> tuple[str, np.ndarray]:
    name = min(Arrays(content))
    return name, Arrays(content)[name].copy()


def _put(content: RecordDict, name: str, value: np.ndarray) -> None:
    Arrays(content)[name] = value


def extra_key(_: RecordDict, reply: RecordDict) -> None:
    _put(reply, PATIENT, np.zeros(3, np.float32))


def missing_key(_: RecordDict, reply: RecordDict) -> None:
    del Arrays(reply)[_first(reply)[0]]


def wrong_shape(_: RecordDict, reply: RecordDict) -> None:
    name, value = _first(reply)
    _put(reply, name, value[None])


def not_a_number(_: RecordDict, reply: RecordDict) -> None:
    name, value = _first(reply)
    value.reshape(-1)[0] = np.nan
    _put(reply, name, value)


def above_bound(_: RecordDict, reply: RecordDict) -> None:
    name, value = _first(reply)
    _put(reply, name, np.full_like(value, 1e7))


def times_1000(question: RecordDict, reply: RecordDict) -> None:
    trained = dict(Arrays(reply))
    for name, before in dict(Arrays(question)).items():
        after = trained[name]
        _put(reply, name, np.asarray(before + 1000 * (after - before), np.float32))


def _count(number: int) -> Change:
    def change(_: RecordDict, reply: RecordDict) -> None:
        examples = reply.metric_records["examples"]
        examples[min(examples)] = number

    return change


def frozen_weight(_: RecordDict, reply: RecordDict) -> None:
    _put(reply, "slides.encoder.blocks.0.weight", np.ones((32, 32), np.float32))


def patient_metric(_: RecordDict, reply: RecordDict) -> None:
    reply.metric_records["metrics"][PATIENT] = 1.0


def oversize(_: RecordDict, reply: RecordDict) -> None:
    """Valid arrays with a long tail that NumPy does not read."""
    record = reply.array_records["arrays"]
    honest, tail = record[SEALED], np.random.default_rng(0).bytes(HUGE)
    record[SEALED] = Array(dtype=honest.dtype, shape=honest.shape, stype=honest.stype, data=honest.data + tail)


def exception(_: RecordDict, reply: RecordDict) -> None:
    raise RuntimeError(f"{FILE} is damaged")


TAMPERS: Mapping[str, Tamper] = {
    "extra-key": Tamper(change=extra_key, refused=r"1 array\(s\) outside the manifest"),
    "missing-key": Tamper(change=missing_key, refused=r"1 array\(s\) missing"),
    "wrong-shape": Tamper(change=wrong_shape, refused="is float32.*, not float32"),
    "not-a-number": Tamper(change=not_a_number, refused="is not finite"),
    "norm-above-bound": Tamper(change=above_bound, refused="has a norm above 10000"),
    "negative-examples": Tamper(change=_count(-1_000_000_000), refused=r"example count of .* is outside 0\.\."),
    "huge-examples": Tamper(change=_count(1_000_000_000), refused=r"example count of .* is outside 0\.\."),
    "frozen-weight": Tamper(change=frozen_weight, refused=r"1 array\(s\) outside the manifest"),
    "patient-metric": Tamper(change=patient_metric, refused=r"1 metric\(s\) outside the manifest"),
    "oversize": Tamper(change=oversize, refused="is larger than|holds more than its arrays"),
    "exception": Tamper(change=exception, refused="Flower error 2"),
}


def tampered(name: str, question: Message, reply: RecordDict) -> RecordDict:
    """The reply after the change called ``name``; an unknown name leaves it honest."""
    if name in TAMPERS:
        TAMPERS[name].change(question.content, reply)
    elif name == "norm-x1000":
        times_1000(question.content, reply)
    return reply

"""Honest replies made bad; both a hostile hospital and a malicious client app use them. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, Message, RecordDict

PATIENT = "SYN-H5-0003"
FILE = f"/data/features/{PATIENT}.h5"
HUGE = 70_000_000
Change = Callable[[RecordDict, RecordDict], None]


@dataclass(frozen=True, kw_only=True)
class Tamper:
    """What is done to a reply, given the question, and why the server should refuse it (a regular expression)."""

    change: Change
    refused: str


def _first(content: RecordDict) -> tuple[str, np.ndarray]:
    name = min(content.array_records["arrays"])
    return name, content.array_records["arrays"][name].numpy().copy()


def _put(content: RecordDict, name: str, value: np.ndarray) -> None:
    content.array_records["arrays"][name] = Array(value)


def extra_key(_: RecordDict, reply: RecordDict) -> None:
    _put(reply, PATIENT, np.zeros(3, np.float32))


def missing_key(_: RecordDict, reply: RecordDict) -> None:
    del reply.array_records["arrays"][_first(reply)[0]]


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
    for name, sent in question.array_records["arrays"].items():
        before, after = sent.numpy(), reply.array_records["arrays"][name].numpy()
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
    """A valid array with a long tail that NumPy does not read."""
    name, value = _first(reply)
    honest = Array(value)
    tail = np.random.default_rng(0).bytes(HUGE)
    reply.array_records["arrays"][name] = Array(
        dtype=honest.dtype, shape=honest.shape, stype=honest.stype, data=honest.data + tail
    )


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
    "oversize": Tamper(change=oversize, refused="holds more than its arrays"),
    "exception": Tamper(change=exception, refused="Flower error 2"),
}


def tampered(name: str, question: Message, reply: RecordDict) -> RecordDict:
    """The reply after the change called ``name``; an unknown name leaves it honest."""
    if name in TAMPERS:
        TAMPERS[name].change(question.content, reply)
    elif name == "norm-x1000":
        times_1000(question.content, reply)
    return reply

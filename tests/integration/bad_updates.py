"""What else a site that errs or cheats does to the update that it sends: for the coordinator to refuse."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict

from tests.chaos.tampers import SEALED, Arrays


def first_array(content: RecordDict, record: str = "arrays") -> tuple[Arrays, str, np.ndarray]:
    arrays = Arrays(content, record)
    name = min(arrays)
    return arrays, name, arrays[name].copy()


def double_precision(content: RecordDict) -> None:
    arrays, name, value = first_array(content)
    arrays[name] = value.astype(np.float64)


def enormous(content: RecordDict) -> None:
    arrays, name, value = first_array(content)
    arrays[name] = np.full_like(value, 1e30)


def not_an_array(content: RecordDict) -> None:
    content.array_records["arrays"][SEALED] = Array("uint8", (7,), "numpy.ndarray", b"rubbish")


def an_archive(content: RecordDict) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, nothing=np.zeros(7))
    content.array_records["arrays"][SEALED] = Array("uint8", (7,), "numpy.ndarray", packed.getvalue())


def hidden_bytes(content: RecordDict) -> None:
    record = content.array_records["arrays"]
    data = record[SEALED].data + bytes(10_000)
    record[SEALED] = Array("uint8", record[SEALED].shape, "numpy.ndarray", data)


def text(content: RecordDict) -> None:
    content.array_records["arrays"][SEALED] = Array(np.full(7, "text"))


def too_many_examples(content: RecordDict) -> None:
    count(content, 10**9)


def half_an_example(content: RecordDict) -> None:
    count(content, 1.5)


def examples_as_lists(content: RecordDict) -> None:
    count(content, [1, 2])


def count(content: RecordDict, value: Any) -> None:
    examples = content.metric_records["examples"]
    examples[min(examples)] = value


def examples_of_nothing(content: RecordDict) -> None:
    content["examples"] = MetricRecord({"nothing": 3})


def metric_outside(content: RecordDict) -> None:
    content.metric_records["metrics"]["age-of-the-oldest"] = 97.0


def failure_as_numbers(content: RecordDict) -> None:
    content["failure"] = MetricRecord({"code": 1})


def an_empty_list(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"names": []})


def enormous_loss(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = 1e308


def no_loss(content: RecordDict) -> None:
    del content.metric_records["metrics"]["loss"]

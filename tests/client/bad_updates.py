"""What a client app that errs or cheats does to an honest update, and the reason for which it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from tests.chaos.tampers import SEALED, Arrays

PATIENT = "SYN-H1-0007"
Change = Callable[[RecordDict], None]


def arrays_of(content: RecordDict) -> tuple[Arrays, str, Any]:
    record = Arrays(content)
    name = max(record, key=lambda key: record[key].size)
    return record, name, record[name].copy()


def extra_key(content: RecordDict) -> None:
    Arrays(content)["rows"] = np.zeros(3, np.float32)


def frozen_weight(content: RecordDict) -> None:
    Arrays(content)["modaltune.slide_encoder.layers.0.weight"] = np.zeros((4, 4), np.float32)


def frozen_weight_in_place_of_another(content: RecordDict) -> None:
    record, name, value = arrays_of(content)
    del record[name]
    record["modaltune.slide_encoder.layers.0.weight"] = value


def patient_as_key(content: RecordDict) -> None:
    Arrays(content)[PATIENT] = np.zeros(1, np.float32)


def missing_key(content: RecordDict) -> None:
    record, name, _ = arrays_of(content)
    del record[name]


def wrong_shape(content: RecordDict) -> None:
    record, name, value = arrays_of(content)
    record[name] = value[None]


def wrong_type(content: RecordDict) -> None:
    record, name, value = arrays_of(content)
    record[name] = value.astype(np.float16)


def array_by_array(content: RecordDict) -> None:
    arrays = {name: Array(value) for name, value in Arrays(content).items()}
    content["arrays"] = ArrayRecord(arrays)


def other_type_of_the_whole(content: RecordDict) -> None:
    record = content.array_records["arrays"]
    record[SEALED] = Array(record[SEALED].numpy().astype([(PATIENT, "u1")]))


def not_a_number(content: RecordDict) -> None:
    record, name, value = arrays_of(content)
    value.reshape(-1)[0] = np.nan
    record[name] = value


def a_thousand_times_the_norm(content: RecordDict) -> None:
    record, name, value = arrays_of(content)
    record[name] = np.full_like(value, 1e6)


def oversize(content: RecordDict) -> None:
    record = content.array_records["arrays"]
    honest = record[SEALED]
    padded = honest.data + b"SYN-H1-0007;" * 10_000
    record[SEALED] = Array(dtype="uint8", shape=honest.shape, stype="numpy.ndarray", data=padded)


def rubbish(content: RecordDict) -> None:
    content.array_records["arrays"][SEALED] = Array(np.frombuffer(b"rubbish", np.uint8))


def other_serialisation(content: RecordDict) -> None:
    content.array_records["arrays"][SEALED] = Array("uint8", (11,), "pickle", b"cos\nsystem\n")


def extra_record(content: RecordDict) -> None:
    content["notes"] = ConfigRecord({"text": PATIENT})


def no_arrays(content: RecordDict) -> None:
    del content["arrays"]


def wrong_kind_of_record(content: RecordDict) -> None:
    content["examples"] = ConfigRecord({"all": 3})


def negative_examples(content: RecordDict) -> None:
    examples = content.metric_records["examples"]
    examples[min(examples)] = -1


def huge_examples(content: RecordDict) -> None:
    examples = content.metric_records["examples"]
    examples[min(examples)] = 10**9


def patient_as_metric(content: RecordDict) -> None:
    content.metric_records["metrics"][PATIENT] = 1.0


def infinite_loss(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = float("inf")


def negative_loss(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = -1.0


def missing_metric(content: RecordDict) -> None:
    del content.metric_records["metrics"]["steps"]


def too_many_validation_cases(content: RecordDict) -> None:
    content.metric_records["metrics"]["val-cases"] = 10.0**6


def one_validation_case(content: RecordDict) -> None:
    content.metric_records["metrics"]["val-cases"] = 1.0


def few_examples(content: RecordDict) -> None:
    examples = content.metric_records["examples"]
    examples[max(examples, key=lambda name: int(str(examples[name])))] = 1


def few_training_cases(content: RecordDict) -> None:
    content.metric_records["metrics"]["train-cases"] = 1.0


def a_change_that_nobody_made(content: RecordDict) -> None:
    name = next(name for name, count in content.metric_records["examples"].items() if count == 0)
    value = Arrays(content)[name]
    Arrays(content)[name] = value + np.float32(1)


def a_loss_of_any_size(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = 1e300


def a_validation_loss_of_nobody(content: RecordDict) -> None:
    content.metric_records["metrics"].update({"val-cases": 0.0, "val-loss-sum": 123.456})


def more_steps_than_cases(content: RecordDict) -> None:
    content.metric_records["metrics"]["steps"] = 1e6


UPDATES: dict[Change, str] = {
    extra_key: r"1 array\(s\) outside the manifest",
    frozen_weight: r"1 array\(s\) outside the manifest",
    frozen_weight_in_place_of_another: r"1 array\(s\) outside the manifest",
    patient_as_key: r"1 array\(s\) outside the manifest",
    missing_key: r"1 array\(s\) missing",
    wrong_shape: r"is float32\(1, .*, not float32\(",
    wrong_type: r"is float16.*, not float32\(",
    array_by_array: "is not one safetensors file",
    other_type_of_the_whole: "holds more than its arrays",
    not_a_number: "is not finite",
    a_thousand_times_the_norm: "norm above",
    oversize: "is larger than",
    rubbish: "names more than its arrays",
    other_serialisation: "is unreadable",
    extra_record: "its records are not arrays, examples, metrics",
    no_arrays: "its records are not arrays, examples, metrics",
    wrong_kind_of_record: "not the records of a reply to train",
    negative_examples: r"is outside 0\.\.",
    huge_examples: r"is outside 0\.\.",
    patient_as_metric: r"1 metric\(s\) outside the manifest",
    infinite_loss: "is not a finite number",
    negative_loss: "a metric is negative",
    missing_metric: "a metric is missing",
    few_examples: "is below 5",
    few_training_cases: "train-cases is below 5",
    a_change_that_nobody_made: "changes without a case",
    a_loss_of_any_size: "loss is out of range",
    a_validation_loss_of_nobody: "val-loss-sum is out of range",
    more_steps_than_cases: "steps is more than the study wants",
    too_many_validation_cases: "val-cases is above the approved number",
    one_validation_case: "val-cases is below 5",
}

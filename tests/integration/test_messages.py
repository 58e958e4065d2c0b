"""What passes between the coordinator and the hospitals, read from the messages of a real run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from modaltune.data.cohort import Cohort
from modaltune.federation.study import Study
from tests.chaos.tampers import Arrays
from tests.integration.grids import Passed, pack, unpack
from tests.integration.helpers import Finished
from tests.integration.leaks import Rules, rules_of

pytestmark = pytest.mark.integration
FROZEN = ("slide_encoder", "candidates")


@pytest.fixture(scope="module")
def rules(federation: Finished, study: Study, cohorts: dict[str, Cohort], hospitals: dict[str, Path]) -> Rules:
    result = federation.result
    return rules_of(result.learner, result.preprocessing, study, cohorts, hospitals.values())


def test_every_phase_passes_once_down_and_up_for_every_hospital(federation: Finished, study: Study) -> None:
    found = Counter((message.kind, message.down) for message in federation.passed)
    sites, rounds = len(study.roster), study.training.rounds
    times = {"query.capability": 1, "query.statistics": 1, "train": rounds, "evaluate": 1}
    assert found == {(kind, down): sites * number for kind, number in times.items() for down in (True, False)}


def test_no_message_carries_patient_data_or_anything_unexpected(federation: Finished, rules: Rules) -> None:
    assert len(rules.identifiers) > 100
    assert len(rules.measurements.first[np.dtype("<f4")]) > 10_000
    assert [(m.kind, m.down, found) for m in federation.passed if (found := rules.problems(m))] == []


def test_no_frozen_weight_travels(federation: Finished) -> None:
    learner = federation.result.learner
    frozen = [name for name, parameter in learner.named_parameters() if not parameter.requires_grad]
    assert all(any(part in name for name in frozen) for part in FROZEN)
    for message in federation.passed:
        travelled = {key for record in message.content.array_records for key in Arrays(message.content, record)}
        assert not travelled & set(frozen)
        assert not [key for key in travelled if any(part in key for part in FROZEN)]


def test_weights_that_come_back_differ_from_those_that_went_out(federation: Finished) -> None:
    sent, returned = (
        [Arrays(m.content) for m in federation.passed if m.kind == "train" and m.down is down] for down in (True, False)
    )
    values = [b"".join(array.tobytes() for array in record.values()) for record in (sent[0], *returned)]
    assert len(set(values)) == len(values)


def test_reported_traffic_is_the_payload_of_the_messages(federation: Finished) -> None:
    for down, name in ((True, "bytes_down"), (False, "bytes_up")):
        reported = sum(row[name] for row in federation.rounds)
        actual = sum(len(message.data) for message in federation.passed if message.down is down)
        assert 0.8 * actual < reported <= actual


def leak_identifier(content: RecordDict, cohort: Cohort) -> None:
    content.metric_records["metrics"][f"loss of {cohort.cases.index[3]}"] = 0.5


def leak_slide_name(content: RecordDict, cohort: Cohort) -> None:
    content["log"] = ConfigRecord({"text": f"cannot read {cohort.cases.index[0]}-S1.h5"})


def hide(values: np.ndarray, place: int) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        record = Arrays(content)
        name = max(record, key=lambda key: np.prod(record[key].shape))
        array = record[name].copy()
        flat = array.reshape(-1)
        flat[place : place + len(values)] = values
        record[name] = array

    return change


def leak_expression(content: RecordDict, cohort: Cohort) -> None:
    hide(cohort.expression.to_numpy()[4, 7:13], 1)(content)


def leak_features(content: RecordDict, cohort: Cohort) -> None:
    hide(np.asarray(next(iter(cohort.bags.values()))[0].features)[2, 1:7], 50)(content)


def leak_double_precision(content: RecordDict, cohort: Cohort) -> None:
    content.config_records["extra"] = ConfigRecord({"x": b"odd" + cohort.expression.to_numpy(np.float64)[0].tobytes()})


def leak_survival(content: RecordDict, cohort: Cohort) -> None:
    content.config_records["extra"] = ConfigRecord({"months": cohort.cases["time_months"].tolist()})


def leak_frozen_weight(content: RecordDict, cohort: Cohort) -> None:
    Arrays(content)["modaltune.slide_encoder.patch_embed.proj.weight"] = np.zeros(3, np.float32)


def leak_metric(content: RecordDict, cohort: Cohort) -> None:
    content.metric_records["metrics"]["mean-age"] = 61.5


@pytest.mark.parametrize(
    ("leak", "finding"),
    [
        (leak_identifier, "1 identifiers"),
        (leak_slide_name, "identifiers"),
        (leak_expression, "measurements"),
        (leak_features, "measurements"),
        (leak_double_precision, "measurements"),
        (leak_survival, "measurements"),
        (leak_frozen_weight, "arrays: .*slide_encoder"),
        (leak_metric, "metrics: .*mean-age"),
    ],
)
def test_a_planted_leak_is_found(
    leak: Callable[[RecordDict, Cohort], None],
    finding: str,
    federation: Finished,
    rules: Rules,
    cohorts: dict[str, Cohort],
) -> None:
    whole = next(m for m in federation.passed if m.kind == "train" and not m.down)
    message: Message = unpack(whole.data)
    leak(message.content, cohorts["H1"])
    found = rules.problems(Passed(down=False, kind="train", data=pack(message)))
    assert re.search(finding, "; ".join(found))

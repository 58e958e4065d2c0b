"""A coordinator among sites that err, cheat or stay silent: it refuses, names them and goes on with the others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from client.runtime import Site
from modaltune.data.cohort import Cohort
from modaltune.errors import FederationError, RunFailed
from modaltune.federation.study import Study
from server.rounds import Federation, Result
from tests.integration.grids import LocalGrid, Tamper, honest
from tests.integration.helpers import read_rounds

SITES = ("H1", "H2", "H5")
SECRET = "SYN-H2-0003"
Change = Callable[[RecordDict], None]


@pytest.fixture(scope="module")
def folders(hospitals: dict[str, Path]) -> dict[str, Path]:
    return {site: hospitals[site] for site in SITES}


@pytest.fixture(scope="module")
def short(study: Study) -> Study:
    """One round over three hospitals that all hold the diagnosis; a silent site is given up after two seconds."""
    training = study.training.model_copy(update={"rounds": 1})
    changes = {"roster": SITES, "training": training, "quorum": 2, "deadline_seconds": 2.0}
    return study.model_copy(update=changes)


@pytest.fixture(scope="module")
def undisturbed(short: Study, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same federation when nobody misbehaves."""
    return Federation(LocalGrid(folders), short, tmp_path_factory.mktemp("honest")).run()


@pytest.fixture
def run(short: Study, folders: dict[str, Path], tmp_path: Path) -> Callable[..., tuple[Result, dict[str, Any]]]:
    """Runs the short study with tampered replies; gives the result and the last row of each phase."""

    def go(tamper: Tamper = honest, **changes: Any) -> tuple[Result, dict[str, Any]]:
        grid = LocalGrid(folders, tamper)
        result = Federation(grid, short.model_copy(update=changes), tmp_path).run()
        return result, {row["phase"]: row for row in read_rounds(tmp_path)}

    return go


def from_site(site: str, kind: str, answer: Callable[[Message], list[Message]]) -> Tamper:
    """Replaces one site's replies to one kind of message."""

    def tamper(name: str, reply: Message) -> list[Message]:
        return answer(reply) if (name, reply.metadata.message_type) == (site, kind) else [reply]

    return tamper


def changed(change: Change) -> Callable[[Message], list[Message]]:
    def answer(reply: Message) -> list[Message]:
        change(reply.content)
        return [reply]

    return answer


def first_array(content: RecordDict, record: str = "arrays") -> tuple[ArrayRecord, str, np.ndarray]:
    arrays = content.array_records[record]
    name = min(arrays)
    return arrays, name, arrays[name].numpy().copy()


def not_a_number(content: RecordDict) -> None:
    arrays, name, value = first_array(content)
    value.reshape(-1)[0] = np.nan
    arrays[name] = Array(value)


def other_shape(content: RecordDict) -> None:
    arrays, name, value = first_array(content)
    arrays[name] = Array(value[None])


def double_precision(content: RecordDict) -> None:
    arrays, name, value = first_array(content)
    arrays[name] = Array(value.astype(np.float64))


def enormous(content: RecordDict) -> None:
    arrays, name, value = first_array(content)
    arrays[name] = Array(np.full_like(value, 1e30))


def not_an_array(content: RecordDict) -> None:
    arrays, name, value = first_array(content)
    arrays[name] = Array(dtype="float32", shape=value.shape, stype="numpy.ndarray", data=b"rubbish")


def pickled(content: RecordDict) -> None:
    arrays, name, value = first_array(content)
    arrays[name] = Array(np.full(value.shape, "text"))


def extra_array(content: RecordDict) -> None:
    content.array_records["arrays"]["rows"] = Array(np.zeros(3, np.float32))


def missing_array(content: RecordDict) -> None:
    arrays, name, _ = first_array(content)
    del arrays[name]


def no_arrays(content: RecordDict) -> None:
    del content["arrays"]


def wrong_kind_of_record(content: RecordDict) -> None:
    content["examples"] = ConfigRecord({"all": 3})


def too_many_examples(content: RecordDict) -> None:
    count(content, 10**9)


def negative_examples(content: RecordDict) -> None:
    count(content, -1)


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


def infinite_loss(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = float("inf")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (not_a_number, "is not finite"),
        (other_shape, r"is float32\(1, .*, not float32"),
        (double_precision, "is float64.*, not float32"),
        (enormous, "has a norm above 10000"),
        (not_an_array, "unreadable"),
        (pickled, ", not float32"),
        (extra_array, r"1 array\(s\) outside the manifest"),
        (missing_array, r"1 array\(s\) missing, first "),
        (no_arrays, "record 'arrays' is missing"),
        (wrong_kind_of_record, "record 'examples' is missing"),
        (too_many_examples, r"example count of .* is outside 0\.\."),
        (negative_examples, r"example count of .* is outside 0\.\."),
        (half_an_example, r"example count of .* is outside 0\.\."),
        (examples_as_lists, r"example count of .* is outside 0\.\."),
        (examples_of_nothing, "example counts for 1 keys"),
        (metric_outside, r"1 metric\(s\) outside the manifest"),
        (infinite_loss, "metric loss is not a finite number"),
    ],
)
def test_a_bad_update_is_refused_and_the_round_goes_on(
    change: Change, reason: str, run: Callable[..., Any], undisturbed: Result
) -> None:
    result, phases = run(from_site("H2", "train", changed(change)))
    row = phases["train"]
    assert (row["status"], row["contributors"], row["missing"]) == ("DEGRADED", ["H1", "H5"], [])
    assert list(row["refused"]) == ["H2"]
    assert re.search(reason, row["refused"]["H2"])
    assert "age-of-the-oldest" not in json.dumps(row)
    assert result.status == "DEGRADED"
    assert result.weights_hash != undisturbed.weights_hash
    assert all(bool(value.isfinite().all()) for value in result.learner.state_dict().values())
    assert phases["evaluate"]["contributors"] == list(SITES)

"""A coordinator among sites that err, cheat or stay silent: it refuses, names them and goes on with the others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from client.runtime import Site
from modaltune.data.cohort import Cohort
from modaltune.errors import FederationError, RunFailed
from modaltune.federation.study import Study
from modaltune.models.learner import build_learner
from modaltune.models.modaltune import trainable_state
from server.rounds import Federation, Result
from tests.chaos.tampers import Arrays
from tests.client.bad_updates import (
    extra_key,
    infinite_loss,
    missing_key,
    negative_examples,
    no_arrays,
    not_a_number,
    wrong_kind_of_record,
    wrong_shape,
)
from tests.integration.bad_updates import (
    an_archive,
    an_empty_list,
    double_precision,
    enormous,
    enormous_loss,
    examples_as_lists,
    examples_of_nothing,
    failure_as_numbers,
    first_array,
    half_an_example,
    hidden_bytes,
    metric_outside,
    no_loss,
    not_an_array,
    text,
    too_many_examples,
)
from tests.integration.grids import LocalGrid, Tamper, honest, pack, unpack
from tests.integration.helpers import SITES, read_rounds

SECRET = "SYN-H2-0003"
Change = Callable[[RecordDict], None]


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


def shifted(reply: Message) -> Message:
    """A copy of an update with other weights."""
    copy = unpack(pack(reply))
    arrays, name, value = first_array(copy.content)
    arrays[name] = np.asarray(value + 1)
    return copy


BAD_UPDATES: dict[Change, str] = {
    failure_as_numbers: "site reported an unreadable failure",
    an_empty_list: "unreadable reply",
    enormous_loss: "metric loss is out of range",
    no_loss: "metric loss is missing",
    not_a_number: "is not finite",
    wrong_shape: r"is float32\(1,.*, not float32",
    double_precision: "is float64.*, not float32",
    enormous: "has a norm above 10000",
    not_an_array: "a record of arrays is unreadable",
    an_archive: "a record of arrays is unreadable",
    hidden_bytes: "holds more than its arrays",
    text: "holds more than its arrays",
    extra_key: r"1 array\(s\) outside the manifest",
    missing_key: r"1 array\(s\) missing, first ",
    no_arrays: "record 'arrays' is missing",
    wrong_kind_of_record: "record 'examples' is missing",
    too_many_examples: r"example count of .* is outside 0\.\.",
    negative_examples: r"example count of .* is outside 0\.\.",
    half_an_example: r"example count of .* is outside 0\.\.",
    examples_as_lists: r"example count of .* is outside 0\.\.",
    examples_of_nothing: "example counts for 1 keys",
    metric_outside: r"1 metric\(s\) outside the manifest",
    infinite_loss: "metric loss is not a finite number",
}


@pytest.fixture(scope="module")
def attacked(
    short: Study, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, list[dict[str, Any]]]:
    """One federation in which H2 sends another bad update in every round."""
    changes, folder = list(BAD_UPDATES), tmp_path_factory.mktemp("attacked")

    def tamper(site: str, reply: Message) -> list[Message]:
        if (site, reply.metadata.message_type) == ("H2", "train"):
            changes[int(reply.metadata.group_id) - 1](reply.content)
        return [reply]

    training = short.training.model_copy(update={"rounds": len(changes)})
    study = short.model_copy(update={"training": training})
    return Federation(LocalGrid(folders, tamper), study, folder).run(), read_rounds(folder)


@pytest.mark.parametrize("change", BAD_UPDATES)
def test_a_bad_update_is_refused_and_the_round_goes_on(change: Change, attacked: Any) -> None:
    number = list(BAD_UPDATES).index(change) + 1
    row = next(row for row in attacked[1] if (row["phase"], row["round"]) == ("train", number))
    assert (row["status"], row["contributors"], row["missing"]) == ("DEGRADED", ["H1", "H5"], [])
    assert list(row["refused"]) == ["H2"]
    assert re.search(BAD_UPDATES[change], row["refused"]["H2"])


def test_a_federation_under_attack_ends_with_a_sound_model(attacked: Any) -> None:
    result, rows = attacked
    assert result.status == "DEGRADED"
    assert all(bool(value.isfinite().all()) for value in result.learner.state_dict().values())
    assert rows[-1]["contributors"] == list(SITES)
    assert "age-of-the-oldest" not in json.dumps(rows)


def test_an_honest_federation_is_not_degraded(undisturbed: Result) -> None:
    assert undisturbed.status == "OK"


def test_the_end_is_told_before_the_run_is_called_done(short: Study, folders: dict[str, Path], tmp_path: Path) -> None:
    """Whoever kills the process between the two leaves a run that goes on, not one that seems to run for ever."""
    said: list[str] = []
    Federation(LocalGrid(folders), short, tmp_path).run(
        lambda _: said.append(json.loads((tmp_path / "status.json").read_text())["status"])
    )
    assert said == ["OK"]


def test_only_the_first_reply_of_a_site_counts(run: Callable[..., Any], undisturbed: Result) -> None:
    def twice(reply: Message) -> list[Message]:
        return [reply, shifted(reply)]

    result, phases = run(from_site("H2", "train", twice))
    assert result.weights_hash == undisturbed.weights_hash
    assert phases["train"]["contributors"] == list(SITES)


def test_a_reply_of_an_unknown_node_is_dropped(run: Callable[..., Any], undisturbed: Result) -> None:
    def with_stranger(reply: Message) -> list[Message]:
        stranger = shifted(reply)
        stranger.metadata.__dict__["_src_node_id"] = 666
        return [stranger, reply]

    result, phases = run(from_site("H2", "train", with_stranger))
    assert (result.status, result.weights_hash) == ("OK", undisturbed.weights_hash)
    assert phases["train"]["contributors"] == list(SITES)


def test_a_site_outside_the_roster_is_refused(run: Callable[..., Any], short: Study) -> None:
    result, phases = run(roster=("H1", "H2"))
    assert result.status == "DEGRADED"
    assert phases["capability"]["contributors"] == ["H1", "H2"]
    assert phases["capability"]["refused"] == {"node 1003": "site reported FederationError"}


def test_a_site_cannot_take_the_name_of_another(run: Callable[..., Any]) -> None:
    def pretend(content: RecordDict) -> None:
        content.config_records["capability"]["site"] = "H1"

    _, phases = run(from_site("H5", "query.capability", changed(pretend)))
    assert phases["capability"]["refused"] == {"node 1003": "a second node claims this site"}
    assert phases["capability"]["missing"] == ["H5"]
    assert phases["train"]["missing"] == ["H5"]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("site", "H9", "names no site of the roster"),
        ("site", 3, "names no site of the roster"),
        ("tasks", ["grading"], "a task outside the study"),
        ("tasks", 5, "its tasks are not a list of names"),
        ("genes", "TP53", "its genes are not a list of names"),
        ("modalities", [1, 2], "its modalities are not a list of names"),
        ("cases-train", -4, "case counts are not whole numbers"),
        ("cases-test", 1.5, "case counts are not whole numbers"),
    ],
)
def test_a_senseless_introduction_is_refused(
    field: str, value: Any, reason: str, run: Callable[..., Any], tmp_path: Path
) -> None:
    def change(content: RecordDict) -> None:
        content.config_records["capability"][field] = value

    with pytest.raises(RunFailed, match=rf"\(capability\): 2 of 3 sites needed answered \(node 1003: .*{reason}"):
        run(from_site("H5", "query.capability", changed(change)), quorum=3)
    rows = read_rounds(tmp_path)
    assert [(row["attempt"], row["status"]) for row in rows] == [(1, "REPEATED"), (2, "REPEATED"), (3, "DEGRADED")]
    row = rows[-1]
    assert (row["status"], row["contributors"], list(row["refused"])) == ("DEGRADED", ["H1", "H2"], ["node 1003"])


def test_a_site_with_patches_of_another_encoder_ends_the_study_before_it_begins(run: Callable[..., Any]) -> None:
    def change(content: RecordDict) -> None:
        content.config_records["capability"]["patch-encoder"] = "another"

    with pytest.raises(FederationError, match=r"the bags of site H1 have patch encoder \w+, those of H5 another; say"):
        run(from_site("H5", "query.capability", changed(change)))


def test_statistics_that_break_the_manifest_are_left_out(
    run: Callable[..., Any], undisturbed: Result, cohorts: dict[str, Cohort]
) -> None:
    def change(content: RecordDict) -> None:
        arrays, name, value = first_array(content, "statistics")
        arrays[name] = np.full_like(value, np.inf)

    result, phases = run(from_site("H2", "query.statistics", changed(change)))
    assert list(phases["preprocess"]["refused"]) == ["H2"]
    assert "is not finite" in phases["preprocess"]["refused"]["H2"]
    ages = [cohorts[site].cases.query("split == 'train'")["age"] for site in ("H1", "H5")]
    assert result.preprocessing.clinical["age"].mean[0] == pytest.approx(np.concatenate(ages).mean())


def test_evaluation_metrics_with_other_names_are_refused(run: Callable[..., Any]) -> None:
    def change(content: RecordDict) -> None:
        content.metric_records["metrics"][SECRET] = 1.0

    result, phases = run(from_site("H2", "evaluate", changed(change)))
    assert phases["evaluate"]["refused"] == {"H2": "1 metric(s) outside the manifest"}
    assert result.status == "DEGRADED"


def test_flowers_error_text_stays_unwritten(run: Callable[..., Any], tmp_path: Path) -> None:
    def fail(reply: Message) -> list[Message]:
        asked = unpack(pack(reply))
        broken = Message(Error(code=7, reason=f"KeyError: {SECRET}"), reply_to=asked)
        for name in ("reply_to_message_id", "src_node_id"):
            broken.metadata.__dict__[f"_{name}"] = getattr(reply.metadata, name)
        return [broken]

    _, phases = run(from_site("H2", "train", fail))
    assert phases["train"]["refused"] == {"H2": "Flower error 7"}
    assert SECRET not in everything_written(tmp_path)


def test_a_failure_code_that_is_no_code_is_not_repeated(run: Callable[..., Any], tmp_path: Path) -> None:
    def change(content: RecordDict) -> None:
        content["failure"] = ConfigRecord({"code": f"cannot read {SECRET}"})

    _, phases = run(from_site("H2", "train", changed(change)))
    assert phases["train"]["refused"] == {"H2": "site reported an unreadable failure"}
    assert SECRET not in everything_written(tmp_path)


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError, "UnexpectedError"), (FederationError, "FederationError"), (KeyError, "Unexp")]
)
def test_an_exception_at_a_site_leaves_as_a_code(
    error: type[Exception], code: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train, replies = Site.train, list[bytes]()

    def failing(self: Site, *arguments: Any) -> Any:
        if self.cohort.site == "H2":
            raise error(f"case {SECRET} has no stage")
        return train(self, *arguments)

    def listen(site: str, reply: Message) -> list[Message]:
        replies.append(pack(reply))
        return [reply]

    monkeypatch.setattr(Site, "train", failing)
    _, phases = run(listen)
    assert phases["train"]["refused"]["H2"].startswith(f"site reported {code}")
    assert phases["train"]["contributors"] == ["H1", "H5"]
    assert len(replies) == 4 * len(SITES)
    assert not [reply for reply in replies if SECRET.encode() in reply or b"has no stage" in reply]
    assert SECRET not in everything_written(tmp_path)


def test_damaged_data_at_a_site_leave_as_a_code(
    short: Study, folders: dict[str, Path], hospitals: dict[str, Path], tmp_path: Path
) -> None:
    broken = shutil.copytree(hospitals["H2"], tmp_path / "H2")
    (broken / "expression.parquet").write_bytes(b"PAR1 cut off")
    (tmp_path / "run").mkdir()
    Federation(LocalGrid({**folders, "H2": broken}), short, tmp_path / "run").run()
    introduction = read_rounds(tmp_path / "run")[0]
    assert introduction["refused"] == {"node 1002": "site reported ExpressionError"}
    assert introduction["missing"] == ["H2"]


def test_a_silent_site_is_named_missing_after_the_deadline(run: Callable[..., Any], undisturbed: Result) -> None:
    result, phases = run(from_site("H2", "train", lambda reply: []))
    assert (phases["train"]["missing"], phases["train"]["refused"]) == (["H2"], {})
    assert phases["train"]["contributors"] == ["H1", "H5"]
    assert phases["train"]["status"] == result.status == "DEGRADED"
    assert phases["evaluate"]["contributors"] == list(SITES)


def test_too_few_sites_end_the_run_and_the_message_says_why(run: Callable[..., Any], tmp_path: Path) -> None:
    def tamper(site: str, reply: Message) -> list[Message]:
        if reply.metadata.message_type != "train" or site == "H1":
            return [reply]
        return changed(not_a_number)(reply) if site == "H2" else []

    with pytest.raises(RunFailed, match=r"round 1 \(train\): 1 of 2 sites needed .*H2: .* is not finite; H5: no reply"):
        run(tamper)
    assert RunFailed.exit_code == 4
    assert not (tmp_path / "model").exists()


def test_a_parameter_with_too_few_contributors_keeps_its_value(
    run: Callable[..., Any], short: Study, undisturbed: Result
) -> None:
    privacy = short.privacy.model_copy(update={"min_contributors": 2})
    result, _ = run(privacy=privacy)
    fresh = trainable_state(build_learner(short.model_copy(update={"privacy": privacy}), result.preprocessing))
    trained, free = trainable_state(result.learner), trainable_state(undisturbed.learner)
    alone = {name for name in fresh if name.endswith("task_tokens.vectors.stage")}  # H1 alone has stages
    assert len(alone) == 1
    for name in alone:
        assert bool((trained[name] == fresh[name]).all())
        assert not bool((free[name] == fresh[name]).all())
    shared = next(name for name in fresh if name.endswith("task_tokens.vectors.diagnosis"))
    assert not bool((trained[shared] == fresh[shared]).all())


def everything_written(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin1") for path in folder.rglob("*") if path.is_file())


def claimed(content: RecordDict) -> None:
    record = Arrays(content, "statistics")
    for name in ("cases", "clinical.age.count", "clinical.age.sum", "clinical.age.squares"):
        record[name] = record[name] * 1e9


def negative(content: RecordDict) -> None:
    record = Arrays(content, "statistics")
    record["labels.diagnosis"] = -1e6 * np.ones_like(record["labels.diagnosis"])


def endless(content: RecordDict) -> None:
    record = Arrays(content, "statistics")
    record["expression.sum"] = np.full_like(record["expression.sum"], 1e300)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(claimed, "cases is above"), (negative, "labels.diagnosis counts fewer"), (endless, "expression has sums beyond")],
)
def test_sums_that_no_announced_cases_have_do_not_count(
    change: Change, reason: str, run: Callable[..., Any], tmp_path: Path
) -> None:
    """Not even if the hospital's own gate let them out."""
    _, phases = run(from_site("H2", "query.statistics", changed(change)))
    assert phases["preprocess"]["contributors"] == ["H1", "H5"]
    assert phases["preprocess"]["refused"]["H2"].startswith(reason)
    assert phases["train"]["contributors"] == list(SITES)

"""A site that trains a round again, runs out of memory, or is asked the same question twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import prepared, runtime
from client.label_queries import LABEL, read_label_query
from client.memory import TrainingReply
from client.runtime import Site
from modaltune.data import fewer_patches
from modaltune.data.preprocessing import Preprocessing
from modaltune.encoders.text import verified_text_encoder
from modaltune.errors import DeviceError, SiteFolderError
from modaltune.federation.manifest import METRIC_PARTS
from modaltune.federation.study import Study
from modaltune.federation.wire import Packed, decode_update, encode_weights
from modaltune.models.learner import Learner
from tests.client.conftest import MINIMUM
from tests.client.conversation import TRAIN, Conversation
from tests.conftest import REPOSITORY
from tests.integration.grids import pack

IN_A_PROCESS = """
import sys
from pathlib import Path
from flwr.app import Context, RecordDict
from client.app import make_app
from tests.integration.grids import unpack

message = unpack(Path(sys.argv[2]).read_bytes())
message.metadata.__dict__["_message_id"] = "question"
context = Context(run_id=0, node_id=7, node_config={}, state=RecordDict(), run_config={})
reply = make_app(lambda _: Path(sys.argv[1]))(message, context)
assert "arrays" in reply.content, reply.content
print("transformers" in sys.modules)
"""


@pytest.fixture
def site(conversation: Conversation, tmp_path: Path) -> Site:
    """The hospital with a memory of its own."""
    folder = tmp_path / "H1"
    shutil.copytree(conversation.folder, folder, ignore=shutil.ignore_patterns(".state"))
    return Site(folder, conversation.study)


def train(site: Site, conversation: Conversation, scale: float = 1.0, round_number: int = 1) -> TrainingReply:
    start = {name: value * np.float32(scale) for name, value in conversation.start.items()}
    packed = encode_weights(conversation.study.training.wire, start, conversation.start)
    preprocessing = conversation.preprocessing.model_copy(update={"study": site.study.digest})
    return site.train(preprocessing, packed, round_number)


def assert_same(first: TrainingReply, second: TrainingReply) -> None:
    assert (first.examples, first.metrics) == (second.examples, second.metrics)
    assert all(np.array_equal(first.arrays[name], value) for name, value in second.arrays.items())


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("the site trains again")


def test_the_same_question_is_answered_without_training_again(
    site: Site, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(site, conversation)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "fit", never)
        assert_same(train(Site(site.state_folder.parent, site.study), conversation), first)
        with pytest.raises(AssertionError, match="trains again"):
            train(site, conversation, scale=0.5)


def test_a_journal_of_other_labels_is_not_replayed(
    site: Site, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(site, conversation)
    site.cohort.cases["diagnosis"] = site.cohort.cases["diagnosis"].to_numpy()[::-1]
    monkeypatch.setattr(runtime, "fit", never)
    with pytest.raises(AssertionError, match="trains again"):
        train(site, conversation)


def test_out_of_memory_halves_the_patches_and_starts_the_round_again(
    site: Site, conversation: Conversation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The GPU is a stand-in: training fails while a case has more than half of the patches of the largest one."""
    honest, tried = runtime.fit, list[int]()
    largest = max(
        case.patch_count for case in site.prepared.of(site._learner(*wanted(conversation)), wanted(conversation)[0])
    )

    def on_a_small_gpu(learner: Any, cases: Any, *arguments: Any, **options: Any) -> Any:
        tried.append(max(case.patch_count for case in cases))
        if tried[-1] > largest // 2:
            raise torch.OutOfMemoryError
        return honest(learner, cases, *arguments, **options)

    monkeypatch.setattr(runtime, "fit", on_a_small_gpu)
    with pytest.raises(DeviceError, match="use a larger one"):
        train(site, conversation)
    monkeypatch.setattr(fewer_patches, "FEWEST", 4)
    first = train(site, conversation)
    assert tried[-1] <= largest // 2
    assert f"{largest // 2} patches a case" in caplog.text
    shutil.rmtree(site.state_folder)
    assert_same(train(site, conversation), first)


def test_a_model_that_does_not_fit_on_the_gpu_is_one_line_of_its_own(
    site: Site, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Learner, "to", full)
    with pytest.raises(DeviceError, match=r"the model itself does not fit on it; .* device = 'cpu'"):
        train(site, conversation)


@pytest.mark.parametrize("asked", ["evaluate", "_embedded", "label_query"])
def test_every_answer_is_given_on_fewer_patches_when_memory_runs_out_and_keeps_to_them(
    asked: str, site: Site, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is a stand-in: frozen blocks and embeddings fail while a case has more than half of the patches."""
    query = [read_label_query(conversation.message(LABEL), site.study)] if asked == "label_query" else []
    whole = site.prepared.of(site._learner(*wanted(conversation)), wanted(conversation)[0])
    largest, tried = max(case.patch_count for case in whole), dict[str, list[int]]()

    def on_a_small_gpu(module: Any, name: str) -> Any:
        honest = getattr(module, name)

        def work(*given: Any, **options: Any) -> Any:
            cases = next(value for value in given if isinstance(value, list))
            tried.setdefault(name, []).append(max((case.patch_count for case in cases), default=0))
            if max(case.patch_count for case in cases) > largest // 2:
                raise torch.OutOfMemoryError
            return honest(*given, **options)

        return work

    monkeypatch.setattr(prepared, "with_cached_prefix", on_a_small_gpu(prepared, "with_cached_prefix"))
    for name in ("embed_cases", "embedded", "site_answer"):
        monkeypatch.setattr(runtime, name, on_a_small_gpu(runtime, name))
    monkeypatch.setattr(fewer_patches, "FEWEST", 4)
    site = Site(site.state_folder.parent, site.study)
    getattr(site, asked)(*wanted(conversation), *query)
    assert tried["with_cached_prefix"] == [largest, largest // 2]
    again = Site(site.state_folder.parent, site.study)
    getattr(again, asked)(*wanted(conversation), *query)
    assert tried["with_cached_prefix"][2:] == [largest // 2], "another process keeps to it"


def test_a_site_that_trained_on_fewer_patches_is_evaluated_on_as_many(
    site: Site, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, seen, failures = runtime.embed_cases, list[int](), iter([True])
    whole = site.prepared.of(site._learner(*wanted(conversation)), wanted(conversation)[0])
    largest = max(case.patch_count for case in whole)

    def once(*given: Any, _honest: Any = runtime.fit, **options: Any) -> Any:
        if next(failures, False):
            raise torch.OutOfMemoryError
        return _honest(*given, **options)

    def note(learner: Any, cases: Any) -> Any:
        seen.append(max(case.patch_count for case in cases))
        return honest(learner, cases)

    monkeypatch.setattr(fewer_patches, "FEWEST", 4)
    monkeypatch.setattr(runtime, "fit", once)
    monkeypatch.setattr(runtime, "embed_cases", note)
    train(site, conversation)
    Site(site.state_folder.parent, site.study).evaluate(*wanted(conversation))
    assert 0 < seen[0] <= largest // 2


def wanted(conversation: Conversation) -> tuple[Any, Any]:
    packed = encode_weights(conversation.study.training.wire, conversation.start, conversation.start)
    return conversation.preprocessing, packed


def test_a_gpu_that_is_not_there_is_one_line(site: Site) -> None:
    folder = site.state_folder.parent
    settings = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(settings + '\n[compute]\ndevice = "cuda:99"\n')
    with pytest.raises(DeviceError, match="device 'cuda:99': this machine has"):
        Site(folder, site.study)
    (folder / "site.toml").write_text(settings + '\n[compute]\ndevice = "tpu"\n')
    with pytest.raises(SiteFolderError, match="device"):
        Site(folder, site.study)


def test_a_client_app_with_cached_labels_imports_no_transformers(
    site: Site, conversation: Conversation, tmp_path: Path
) -> None:
    environment = {**os.environ, "MODALTUNE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODALTUNE_CACHE", environment["MODALTUNE_CACHE"])
        for space in conversation.preprocessing.tasks.values():
            verified_text_encoder(conversation.study.text).embed(space.texts)
    (tmp_path / "message").write_bytes(pack(conversation.message(TRAIN)))
    command = [sys.executable, "-c", IN_A_PROCESS, str(site.state_folder.parent), str(tmp_path / "message")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr


def with_minimum(conversation: Conversation, minimum: int) -> Study:
    privacy = conversation.study.privacy.model_copy(update={"min_cell": minimum})
    return conversation.study.model_copy(update={"privacy": privacy})


@pytest.mark.parametrize("second", [2, 3])
def test_drift_is_corrected_in_the_next_round_also_by_a_new_process_and_not_after_a_missed_one(
    second: int, site: Site, conversation: Conversation, tmp_path: Path
) -> None:
    replies = {}
    for strength in (0.0, 1.0):
        training = site.study.training.model_copy(update={"drift": strength})
        study = site.study.model_copy(update={"training": training})
        for restarts in (False, True):
            folder = shutil.copytree(tmp_path / "H1", tmp_path / f"{strength}-{restarts}")
            trained = Site(folder, study)
            train(trained, conversation)
            trained = Site(folder, study) if restarts else trained
            replies[strength, restarts] = train(trained, conversation, 1.01, second)
        assert_same(replies[strength, False], replies[strength, True])
    corrected, plain = (replies[strength, False].arrays for strength in (1.0, 0.0))
    assert all(np.array_equal(corrected[name], plain[name]) for name in plain) == (second == 3)


def test_a_parameter_that_few_cases_trained_leaves_as_it_came(site: Site, conversation: Conversation) -> None:
    counts = sorted({count for count in conversation.reply(TRAIN).metric_records["examples"].values() if count})
    assert counts[0] < counts[-1], "parts of the model that fewer cases train than others"
    reply = train_with(site, conversation, counts[-1])
    assert set(reply.examples.values()) == {0, counts[-1]}
    weights = decode_update(conversation.study.training.wire, reply.arrays, conversation.start)
    for name, count in reply.examples.items():
        assert np.array_equal(weights[name], conversation.start[name]) == (count == 0), name


def test_a_site_with_few_training_cases_says_nothing_about_them(site: Site, conversation: Conversation) -> None:
    reply = train_with(site, conversation, 34)
    assert (set(reply.examples.values()), set(reply.metrics.values())) == ({0}, {0.0})


@pytest.mark.parametrize("task", ["diagnosis", "survival"])
def test_a_task_with_a_class_too_small_to_be_told_has_no_scores(
    task: str, site: Site, conversation: Conversation
) -> None:
    """A score beside the number of all cases tells how many the few are, and how the model does on them."""
    cases = site.cohort.cases
    test = cases["split"] == "test"
    cases.loc[cases.index[test & (cases["event"] == 1)][0], "event"] = 0.0  # five survivors
    cases.to_parquet(site.state_folder.parent / "cases.parquet")
    fewest = int(cases.loc[test, "event" if task == "survival" else task].value_counts().min())
    assert fewest == MINIMUM
    for minimum in (fewest, fewest + 1):
        asked, *question = asked_with(site, conversation, minimum)
        told = asked.evaluate(*question).metrics
        parts = {name.rpartition(".")[2] for name in told if name.startswith(f"{task}.")}
        assert parts == (set(METRIC_PARTS) if minimum == fewest else set())
        events = cases.loc[test, "event"].sum() if task == "survival" else fewest
        assert all(told[name] == events for name in told if name.startswith(task) and name.endswith(".events"))


def train_with(site: Site, conversation: Conversation, minimum: int) -> TrainingReply:
    other, *question = asked_with(site, conversation, minimum)
    return other.train(*question, 1)


def asked_with(site: Site, conversation: Conversation, minimum: int) -> tuple[Site, Preprocessing, Packed]:
    """The site under another least number of cases, and what it is asked with."""
    study = with_minimum(conversation, minimum)
    preprocessing = conversation.preprocessing.model_copy(update={"study": study.digest})
    packed = encode_weights(study.training.wire, conversation.start, conversation.start)
    return Site(site.state_folder.parent, study), preprocessing, packed


def test_the_site_folder_need_not_be_written(
    site: Site, conversation: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site.state_folder.parent
    before = sorted(folder.rglob("*"))
    monkeypatch.setenv("MODALTUNE_STATE", str(tmp_path / "state"))
    train(Site(folder, site.study), conversation)
    assert sorted(folder.rglob("*")) == before
    assert list((tmp_path / "state" / site.study.digest).glob("*.safetensors"))


def test_a_site_says_expression_only_where_the_study_reads_it(site: Site, tmp_path: Path) -> None:
    assert "expression" in site.capability()["modalities"]
    bare = Site(tmp_path / "H1", site.study.model_copy(update={"gene_sets": {}}))
    assert "expression" not in bare.capability()["modalities"]

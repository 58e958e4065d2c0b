from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors
from modaltune.data.preprocessing import Preprocessing
from modaltune.encoders import text
from modaltune.errors import ConfigError, ModelFileError
from modaltune.evaluation.predictions import embed_cases
from modaltune.federation.study import Study
from modaltune.models import learner as module
from modaltune.models.learner import (
    OPTIONAL_PREFIXES,
    Learner,
    build_learner,
    label_targets,
    load_model,
    load_trainable,
    save_model,
)
from modaltune.models.modaltune import trainable_state
from modaltune.step import accumulate_gradients
from modaltune.storage import canonical_json, digest_state, digest_text, save_state
from modaltune.training import fit

Targets = dict[str, Tensor]


class WordEncoder:
    """Stands for the sentence encoder: a fixed random row per text."""

    sha256 = "0" * 64

    def embed(self, texts: tuple[str, ...]) -> Tensor:
        return torch.stack([torch.randn(5, generator=torch.Generator().manual_seed(len(t))) for t in texts])


@pytest.fixture
def word_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "text_encoder", lambda name: WordEncoder())


@pytest.fixture
def saved(tmp_path: Path, tiny_learner: Learner, tiny_study: Study, tiny_preprocessing: Preprocessing) -> Path:
    with torch.no_grad():
        for parameter in trainable_state(tiny_learner).values():
            parameter.add_(0.01)
    save_model(tmp_path / "model", tiny_learner, tiny_study, tiny_preprocessing)
    return tmp_path / "model"


def test_a_saved_model_gives_identical_embeddings(
    saved: Path, tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    loaded, _, _ = load_model(saved)
    expected, found = embed_cases(tiny_learner, tiny_cases), embed_cases(loaded, tiny_cases)
    assert not loaded.training
    for task in expected:
        assert torch.equal(found[task], expected[task]), task
        assert torch.equal(loaded.head(found[task], task), tiny_learner.head(expected[task], task)), task


def test_a_saved_model_brings_its_study_and_preprocessing(
    saved: Path, tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    _, study, preprocessing = load_model(saved)
    assert study.digest == tiny_study.digest
    assert preprocessing.digest == tiny_preprocessing.digest


def test_a_saved_model_needs_no_text_encoder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(name: str) -> None:
        raise AssertionError("the text encoder was asked for")

    monkeypatch.setattr(module, "verified_text_encoder", unwanted)
    assert load_model(saved)[1].name == "tiny"


def test_task_maps_survive_saving_and_count_the_cases_that_have_the_label(
    tmp_path: Path,
    tiny_study: Study,
    tiny_preprocessing: Preprocessing,
    tiny_targets: Targets,
    tiny_cases: list[CaseTensors],
) -> None:
    study = tiny_study.model_copy(update={"model": tiny_study.model.model_copy(update={"task_maps": True})})
    learner = build_learner(study, tiny_preprocessing, tiny_targets)
    first, *others = learner.kinds
    cases = [replace(case, targets={first: case.targets[first]}) for case in tiny_cases if first in case.targets]
    examples = fit(learner, cases, study.training, steps=2, seed=0).examples
    assert examples[f"head.maps.{first}"] == len(cases)
    assert not any(examples[f"head.maps.{task}"] or learner.head.maps[task].any() for task in others)
    assert learner.head.maps[first].any()
    save_model(tmp_path, learner, study, tiny_preprocessing.model_copy(update={"study": study.digest}))
    loaded, _, _ = load_model(tmp_path)
    expected, found = embed_cases(learner, tiny_cases), embed_cases(loaded, tiny_cases)
    assert torch.equal(loaded.head(found[first], first), learner.head(expected[first], first))


def test_separate_heads_survive_saving_without_a_text_encoder(
    tmp_path: Path,
    tiny_study: Study,
    tiny_preprocessing: Preprocessing,
    tiny_cases: list[CaseTensors],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(module, "verified_text_encoder")
    study = tiny_study.model_copy(update={"model": tiny_study.model.model_copy(update={"head": "separate"})})
    learner = build_learner(study, tiny_preprocessing)
    save_model(tmp_path, learner, study, tiny_preprocessing.model_copy(update={"study": study.digest}))
    expected, found = embed_cases(learner, tiny_cases), embed_cases(load_model(tmp_path)[0], tiny_cases)
    assert all(torch.equal(found[task], expected[task]) for task in expected)


def test_copies_of_the_preprocessing_that_travelled_build_the_same_model(
    tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: Targets, tiny_cases: list[CaseTensors]
) -> None:
    assert list(tiny_preprocessing.gene_sets) != sorted(tiny_preprocessing.gene_sets), "the test needs unsorted sets"
    travelled = Preprocessing.from_json(tiny_preprocessing.to_json())
    here = embed_cases(build_learner(tiny_study, tiny_preprocessing, tiny_targets), tiny_cases)
    there = embed_cases(build_learner(tiny_study, travelled, tiny_targets), tiny_cases)
    assert all(torch.equal(here[task], there[task]) for task in here)


def test_initial_weights_depend_on_the_study_seed_only(
    tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: Targets
) -> None:
    torch.manual_seed(1)
    first = digest_state(build_learner(tiny_study, tiny_preprocessing, tiny_targets).state_dict())
    torch.manual_seed(2)
    assert digest_state(build_learner(tiny_study, tiny_preprocessing, tiny_targets).state_dict()) == first
    reseeded = tiny_study.model_copy(update={"seed": 1})
    other = build_learner(reseeded, tiny_preprocessing, tiny_targets)
    assert digest_state(other.state_dict()) != first
    frozen = digest_state(other.modaltune.slide_encoder.state_dict())
    assert frozen == tiny_study.slides.sha256


def test_the_head_and_the_frozen_encoder_stay_out_of_what_travels(tiny_learner: Learner) -> None:
    names = set(trainable_state(tiny_learner))
    assert not any(name.startswith(("modaltune.slide_encoder.", "head.candidates.")) for name in names)
    assert {f"head.scale.{task}" for task in tiny_learner.kinds} <= names


@pytest.mark.parametrize("name", ["weights.safetensors", "label_targets.safetensors"])
def test_truncated_weights_are_one_clear_error(name: str, saved: Path) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match=f"{name}: not a complete safetensors file"):
        load_model(saved)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "label_targets.safetensors", "preprocessing.json", "study.json"]
)
def test_an_absent_file_of_a_model_is_named(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelFileError, match=name):
        load_model(saved)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[]"])
@pytest.mark.parametrize(("name", "kind"), [("preprocessing.json", ModelFileError), ("study.json", ConfigError)])
def test_a_damaged_description_of_a_model_is_refused(
    name: str, kind: type[Exception], content: bytes, saved: Path
) -> None:
    (saved / name).write_bytes(content)
    with pytest.raises(kind, match=name):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"study": "f" * 64}, "belongs to study ffffffffffff"), ({"tasks": {}}, "lacks task diagnosis")],
)
def test_preprocessing_that_is_not_of_the_study_is_refused(
    change: dict[str, object], message: str, saved: Path, tiny_preprocessing: Preprocessing
) -> None:
    (saved / "preprocessing.json").write_text(tiny_preprocessing.model_copy(update=change).to_json())
    with pytest.raises(ModelFileError, match=f"preprocessing.json: {message}"):
        load_model(saved)


def test_a_model_from_before_a_study_had_a_field_is_read(saved: Path, tiny_preprocessing: Preprocessing) -> None:
    older = json.loads((saved / "study.json").read_text())
    del older["training"]["temperature"]
    (saved / "study.json").write_text(canonical_json(older))
    as_then = tiny_preprocessing.model_copy(update={"study": digest_text(canonical_json(older))})
    (saved / "preprocessing.json").write_text(as_then.to_json())
    _, study, found = load_model(saved)
    assert found.study != study.digest


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        ("diagnosis", torch.zeros(3, 7), r"are \(3, 7\), the study has \(3, 8\)"),
        ("diagnosis", torch.zeros(2, 8), r"are \(2, 8\), the study has \(3, 8\)"),
        ("diagnosis", None, r"are absent, the study has \(3, 8\)"),
        ("grade", torch.zeros(2, 8), r"are \(2, 8\), the study has none"),
    ],
)
def test_label_targets_that_do_not_fit_the_study_are_refused(
    task: str, target: Tensor | None, message: str, saved: Path, tiny_targets: Targets
) -> None:
    targets = {name: value for name, value in tiny_targets.items() if name != task}
    save_state(saved / "label_targets.safetensors", targets | ({} if target is None else {task: target}))
    with pytest.raises(ModelFileError, match=f"targets of task {task} {message}"):
        load_model(saved)


def test_a_slide_encoder_with_another_hash_is_refused(
    tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: Targets
) -> None:
    study = tiny_study.model_copy(update={"slides": tiny_study.slides.model_copy(update={"sha256": "f" * 64})})
    with pytest.raises(ModelFileError, match=r"slide encoder 'small': sha256 .* differs"):
        build_learner(study, tiny_preprocessing, tiny_targets)


def test_a_coordinator_without_frozen_weights_starts_from_the_same_trained_ones(
    tiny_learner: Learner, tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: Targets
) -> None:
    blank = build_learner(tiny_study, tiny_preprocessing, tiny_targets, frozen=False)
    assert digest_state(trainable_state(blank)) == digest_state(trainable_state(tiny_learner))
    assert all(parameter.is_meta for parameter in blank.modaltune.slide_encoder.parameters())


@pytest.mark.usefixtures("word_encoder")
def test_a_text_encoder_with_another_hash_is_refused(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    study = tiny_study.model_copy(update={"text": tiny_study.text.model_copy(update={"sha256": "f" * 64})})
    with pytest.raises(ModelFileError, match=r"text encoder 'minilm': sha256 .* differs"):
        build_learner(study, tiny_preprocessing)


@pytest.mark.usefixtures("word_encoder")
def test_label_targets_are_unit_rows_from_the_study_seed(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    targets = label_targets(tiny_study, tiny_preprocessing)
    again = label_targets(tiny_study, tiny_preprocessing)
    other = label_targets(tiny_study.model_copy(update={"seed": 1}), tiny_preprocessing)
    for task, space in tiny_preprocessing.tasks.items():
        assert targets[task].shape == (len(space.candidates), tiny_study.model.output_width)
        torch.testing.assert_close(targets[task].norm(dim=-1), torch.ones(len(space.candidates)))
        assert torch.equal(targets[task], again[task])
        assert not torch.allclose(targets[task], other[task])


def test_weights_with_missing_or_additional_tensors_are_refused(tiny_learner: Learner) -> None:
    state = trainable_state(tiny_learner)
    first = min(state)
    with pytest.raises(ModelFileError, match=f"1 tensor.* differ, first {first}"):
        load_trainable(tiny_learner, {name: value for name, value in state.items() if name != first})
    with pytest.raises(ModelFileError, match=r"1 tensor.* differ, first stranger"):
        load_trainable(tiny_learner, {**state, "stranger": torch.zeros(1)})


def test_weights_of_another_shape_are_refused(tiny_learner: Learner) -> None:
    state = trainable_state(tiny_learner)
    name = "modaltune.token_positions"
    with pytest.raises(ModelFileError, match=rf"{name} has shape \(1, 16\), not \(5, 16\)"):
        load_trainable(tiny_learner, {**state, name: state[name][:1]})


def test_loaded_weights_are_copies(tiny_learner: Learner) -> None:
    state = {name: value.clone() for name, value in trainable_state(tiny_learner).items()}
    load_trainable(tiny_learner, state)
    for value in state.values():
        value.add_(1)
    assert not any(torch.equal(value, state[name]) for name, value in trainable_state(tiny_learner).items())


def test_a_case_exercises_exactly_the_optional_parts_that_it_trains(
    tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    named = {name: p for name, p in tiny_learner.named_parameters() if p.requires_grad}
    optional = {name for name in named if name.startswith(OPTIONAL_PREFIXES)}
    for case in (case for case in tiny_cases if case.targets):
        tiny_learner.zero_grad(set_to_none=True)
        accumulate_gradients(tiny_learner, [case], "contrastive")
        trained = {name for name, parameter in named.items() if parameter.grad is not None}
        parts = tuple(f"{part}." for part in tiny_learner.exercised_by(case))
        assert trained & optional == {name for name in optional if f"{name}.".startswith(parts)}

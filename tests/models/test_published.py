from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from modaltune.encoders.gene import GeneEncoderConfig, PaperGeneEncoder
from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.models.adapters import AdapterConfig
from modaltune.models.learner import Learner
from modaltune.models.modaltune import ModalTune, ModalTuneConfig, trainable_state
from modaltune.models.published import from_published, to_published

TASKS = ("diagnosis", "stage", "survival")
_GOLDENS = Path(os.environ.get("MODALTUNE_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))


def test_translation_there_and_back_changes_nothing(tiny_learner: Learner) -> None:
    state = {name: v for name, v in tiny_learner.modaltune.state_dict().items() if not name.startswith("missing.")}
    back = from_published(to_published(state, TASKS), TASKS)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_published_names_are_used(tiny_learner: Learner) -> None:
    published = to_published(tiny_learner.modaltune.state_dict(), TASKS)
    assert {"gene_pe", "task_weight.0.weight", "task_weight.1.bias", "clinical_mlp.0.weight", "cls_token"} <= set(
        published
    )
    assert not any(name.startswith(("missing.", "slide_encoder.", "task_tokens.")) for name in published)


def test_a_column_of_the_task_matrix_is_the_vector_of_a_task() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    ours = from_published({"task_weight.0.weight": matrix}, TASKS)
    assert {name: value.tolist() for name, value in ours.items()} == {
        "task_tokens.vectors.diagnosis": [0, 3],
        "task_tokens.vectors.stage": [1, 4],
        "task_tokens.vectors.survival": [2, 5],
    }
    assert torch.equal(to_published(ours, TASKS)["task_weight.0.weight"], matrix)


def test_learnt_tokens_for_missing_modalities_have_no_published_name() -> None:
    assert to_published({"missing.slides": torch.zeros(1)}, TASKS) == {}


@pytest.mark.goldens
def test_the_full_model_has_the_published_names_and_shapes() -> None:
    path = _GOLDENS / "keys_modaltune_longnetvit_gene_adapter_full.json"
    if not path.is_file():
        pytest.skip(f"no golden vectors: set MODALTUNE_GOLDENS to a folder with {path.name}")
    golden: dict[str, Any] = json.loads(path.read_text())
    starts = [sum(golden["group_sizes"][:index]) for index in range(golden["n_groups"])]
    genes = golden["gene_encoder_config"]
    with torch.device("meta"):
        model = ModalTune(
            LongNetViT(LongNetConfig()),
            ModalTuneConfig(
                tasks=TASKS,
                gene_indices=tuple(
                    tuple(range(start, start + size)) for start, size in zip(starts, golden["group_sizes"], strict=True)
                ),
                adapter=AdapterConfig(),
                gene_encoder=GeneEncoderConfig(
                    kind="paper", latent=genes["latent_dim"], depth=genes["depth"], tokens=genes["final_groups"]
                ),
            ),
        )
    ours = {name: list(value.shape) for name, value in to_published(model.state_dict(), TASKS).items()}
    published = {
        name: shape[:2] if name.endswith(".weight") and shape[2:] == [1] else shape
        for name, shape in {**golden["trainable"], **golden["frozen"]}.items()
    }
    ours = {name: shape[:2] if name.endswith(".weight") and shape[2:] == [1] else shape for name, shape in ours.items()}
    assert ours == published
    assert isinstance(model.gene_encoder, PaperGeneEncoder)
    trained = model.gene_encoder.published(trainable_state(model), "gene_encoder.")
    assert set(to_published(trained, TASKS)) == set(golden["trainable"])

"""The TITAN wrapper on a stand-in with the snapshot's interface; the real weights are gated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from modaltune.data.batch import Batch, CaseTensors, collate
from modaltune.encoders.registry import blank_slide_encoder, slide_encoder, weights_are_here
from modaltune.encoders.slide import Places
from modaltune.encoders.titan import TitanSlideEncoder
from modaltune.errors import ConfigError, ModelFileError
from modaltune.models.adapters import AdapterConfig
from modaltune.models.baselines.base import Inputs
from modaltune.models.baselines.gigapath import TunedEncoder
from modaltune.models.modaltune import ModalTune, ModalTuneConfig, trainable_state
from modaltune.models.prefix import with_cached_prefix
from modaltune.storage import digest_folder
from tests.encoders.stand_ins import change_weights, titan_snapshot

SIZES = {"in_width": 6, "width": 16, "depth": 6}
PAPER = ((0, 1), (2, 3), (4, 5))


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path))
    return titan_snapshot(tmp_path / "titan")


def loaded(snapshot: Path, **sizes: int) -> TitanSlideEncoder:
    encoder = slide_encoder("titan", **{**SIZES, **sizes}, sha256=digest_folder(snapshot))
    assert isinstance(encoder, TitanSlideEncoder)
    return encoder


def a_slide(patches: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features on cells in no order, with holes between them."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(2 * patches, generator=generator)[:patches]
    cells = torch.stack([place // 3, place % 3], dim=1)
    return torch.randn(patches, 6, generator=generator), cells - cells.min(dim=0).values


def a_case(patches: int, seed: int) -> CaseTensors:
    features, cells = a_slide(patches, seed)
    return CaseTensors(
        patches=features,
        cells=cells,
        expression=torch.zeros(0),
        has_expression=False,
        clinical=torch.zeros(0),
        targets={},
    )


def a_model(encoder: TitanSlideEncoder, groups: tuple[tuple[int, int], ...] = PAPER) -> ModalTune:
    torch.manual_seed(3)
    adapter = AdapterConfig(groups=groups, heads=2, gamma=0.1)
    return ModalTune(encoder, ModalTuneConfig(tasks=("one", "two"), adapter=adapter, token_join="cat")).eval()


def test_without_adapters_it_is_the_snapshots_own_slide_embedding(snapshot: Path) -> None:
    encoder = loaded(snapshot)
    assert weights_are_here("titan")
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    own: Any = AutoModel.from_pretrained(snapshot, trust_remote_code=True, local_files_only=True).eval()
    batch = collate([a_case(9, 1), a_case(5, 2)])
    places = Places(batch.cells, batch.lengths)
    x = encoder.with_cls(encoder.embed(batch.patches, batch.cells))
    pooled = encoder.image(encoder.run_layers(x, 0, 5, places), places)
    for row, (patches, seed) in enumerate(((9, 1), (5, 2))):
        with torch.no_grad():
            torch.testing.assert_close(pooled[row], own.encode_slide(*a_slide(patches, seed)), atol=1e-5, rtol=1e-4)


def test_the_tuned_row_starts_with_the_snapshots_own_slide_embedding(snapshot: Path) -> None:
    inputs = Inputs(features=6, genes=0, gene_indices=(), slide_encoder=lambda: loaded(snapshot))
    trunk = TunedEncoder(inputs).eval()
    own: Any = AutoModel.from_pretrained(snapshot, trust_remote_code=True, local_files_only=True).eval()
    batch = collate([a_case(9, 1), a_case(5, 2)])
    vectors = trunk(batch.patches, Places(batch.cells, batch.lengths), batch.expression)
    expected = torch.cat([own.encode_slide(*a_slide(9, 1)), own.encode_slide(*a_slide(5, 2))])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-4)
    vectors.sum().backward()
    assert all(parameter.grad is not None for parameter in trunk.encoder.parameters())


def test_distance_matters(snapshot: Path) -> None:
    model = a_model(loaded(snapshot))
    case = a_case(7, 4)
    near, far = model.embed(collate([case])), model.embed(collate([replace(case, cells=5 * case.cells)]))
    assert not torch.allclose(near, far, atol=1e-4)
    moved = model.embed(collate([replace(case, cells=case.cells + 11)]))
    torch.testing.assert_close(near, moved, atol=1e-5, rtol=1e-4)


def test_it_carries_adapters_with_the_joined_head(snapshot: Path) -> None:
    model = a_model(loaded(snapshot))
    assert model.final_project.in_features == 2 * 16
    cases = [
        a_case(8, 5),
        a_case(3, 6),
        replace(a_case(3, 6), patches=torch.zeros(0, 6), cells=torch.zeros(0, 2).long()),
    ]
    together = model.embed(collate(cases))
    for row, case in enumerate(cases):
        torch.testing.assert_close(together[row], model.embed(collate([case]))[0], atol=1e-5, rtol=1e-4)
    together.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.interactions.parameters())


def test_cached_prefixes_keep_the_distances(snapshot: Path, tmp_path: Path) -> None:
    model = a_model(loaded(snapshot), groups=((2, 3), (4, 5)))
    cases = [a_case(8, 7), a_case(4, 8)]
    cached = with_cached_prefix(model, "sha", cases, tmp_path / "prefix")
    assert all(case.tokens is not None and not len(case.patches) for case in cached)
    torch.testing.assert_close(model.embed(collate(cached)), model.embed(collate(cases)), atol=1e-2, rtol=1e-2)


def test_a_coordinator_without_the_snapshot_knows_the_trained_shapes(snapshot: Path) -> None:
    whole = a_model(loaded(snapshot))
    blank = blank_slide_encoder("titan", **SIZES)
    adapter = AdapterConfig(groups=PAPER, heads=2, gamma=0.1)
    sizes_only = ModalTune(blank, ModalTuneConfig(tasks=("one", "two"), adapter=adapter, token_join="cat"))
    shapes = {name: value.shape for name, value in trainable_state(sizes_only).items()}
    assert shapes == {name: value.shape for name, value in trainable_state(whole).items()}
    batch: Batch = collate([a_case(3, 1)])
    with pytest.raises(ModelFileError, match="not on this machine; run the model at a site"):
        sizes_only.embed(batch)


def test_changed_code_is_not_run(snapshot: Path) -> None:
    (snapshot / "VERSION").write_text("not loaded yet")
    sha = digest_folder(snapshot)
    (snapshot / "modeling_titan.py").write_text("raise SystemExit(1)")
    with pytest.raises(ModelFileError, match="its code is not run: a file is missing, changed or of another version"):
        slide_encoder("titan", **SIZES, sha256=sha)


def test_an_absent_snapshot_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path))
    assert not weights_are_here("titan")
    with pytest.raises(ModelFileError, match=r"no model folder .*titan; put the snapshot there or name its parent"):
        slide_encoder("titan", **SIZES, sha256="a" * 64)


def _broken_code(folder: Path) -> None:
    (folder / "modeling_titan.py").write_text("import a_package_that_nobody_has\n")


def _absolute_positions(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"positions": "abs"}))


def _other_distances(folder: Path) -> None:
    code = (folder / "modeling_titan.py").read_text()
    (folder / "modeling_titan.py").write_text(code.replace(".square().sum(-1).sqrt()", ".abs().sum(-1)"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: change_weights(folder, "vision_encoder.query"),
            r"1 tensor\(s\) missing, first vision_encoder.q",
        ),
        (_broken_code, r"titan: the snapshot does not load \(\w+\); download it again, or install the packages"),
        (_absolute_positions, "positions of type 'abs' are not supported, only 'alibi'"),
        (_other_distances, "measures distances in another way"),
    ],
)
def test_another_snapshot_is_refused(change: Callable[[Path], None], message: str, snapshot: Path) -> None:
    change(snapshot)
    with pytest.raises(ModelFileError, match=message):
        loaded(snapshot)


def test_other_sizes_are_refused(snapshot: Path) -> None:
    with pytest.raises(ConfigError, match="has in_width 6, width 16 and depth 6, but the study says 768, 16 and 6"):
        loaded(snapshot, in_width=768)

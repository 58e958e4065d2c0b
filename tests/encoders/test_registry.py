from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modaltune.data.batch import Batch
from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.encoders.registry import blank_slide_encoder, slide_encoder, weights_are_here
from modaltune.encoders.vit import ViTSlideEncoder
from modaltune.errors import ConfigError, ModelFileError
from modaltune.models.adapters import AdapterConfig
from modaltune.models.modaltune import ModalTune, ModalTuneConfig
from modaltune.storage import digest_file, save_state

IN, WIDTH, DEPTH = 6, 16, 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path))
    return tmp_path


def a_vit(seed: int = 0) -> ViTSlideEncoder:
    torch.manual_seed(seed)
    encoder = ViTSlideEncoder(IN, WIDTH, DEPTH).eval()
    torch.nn.init.normal_(encoder.cls_token)
    return encoder


def saved(folder: Path, state: dict[str, Tensor]) -> str:
    path = folder / "vit" / "model.safetensors"
    save_state(path, state)
    return digest_file(path)


def load(sha256: str) -> object:
    return slide_encoder("vit", in_width=IN, width=WIDTH, depth=DEPTH, sha256=sha256)


def a_batch(*lengths: int) -> Batch:
    generator, longest = torch.Generator().manual_seed(1), max(lengths)
    patches = torch.randn(len(lengths), longest, IN, generator=generator)
    inside = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    place = torch.arange(longest)
    return Batch(
        patches=patches * inside[..., None],
        cells=torch.stack([place // 3, place % 3], dim=1).expand(len(lengths), -1, -1),
        lengths=torch.tensor(lengths),
        expression=torch.zeros(len(lengths), 0),
        has_expression=torch.zeros(len(lengths), dtype=torch.bool),
        clinical=torch.zeros(len(lengths), 0),
    )


def test_weights_from_a_file_are_used_frozen(folder: Path) -> None:
    encoder = a_vit()
    sha = saved(folder, encoder.state_dict())
    assert weights_are_here("vit")
    loaded = load(sha)
    assert isinstance(loaded, ViTSlideEncoder)
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in loaded.parameters())
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_weights_in_half_precision_are_read_in_full(folder: Path) -> None:
    encoder = a_vit().half()
    loaded = load(saved(folder, encoder.state_dict()))
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert loaded.embed(torch.ones(1, 3, loaded.in_width), torch.zeros(1, 3, 2)).dtype == torch.float32


def test_another_transformer_carries_the_adapters() -> None:
    config = ModalTuneConfig(tasks=("one", "two"), adapter=AdapterConfig(groups=((0, 0), (1, 2)), heads=2, gamma=0.1))
    torch.manual_seed(3)
    model = ModalTune(a_vit(), config).eval()
    together = model.embed(a_batch(5, 2, 1))
    for row, length in enumerate((5, 2, 1)):
        whole = a_batch(5, 2, 1)
        alone = Batch(
            **{name: None if v is None else v[row : row + 1] for name, v in vars(whole).items() if name != "vectors"}
        )
        cut = Batch(**{**vars(alone), "patches": alone.patches[:, :length], "cells": alone.cells[:, :length]})
        torch.testing.assert_close(together[row : row + 1], model.embed(cut), atol=1e-5, rtol=1e-4)
    together.square().sum().backward()
    assert all(p.grad is not None for p in model.interactions.parameters())


def test_absent_weights_say_where_to_put_them(folder: Path) -> None:
    assert not weights_are_here("vit")
    with pytest.raises(ModelFileError, match=r"no file .*vit/model.safetensors; put the weights there or name"):
        load("a" * 64)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_truncated_file_is_found_by_its_hash(folder: Path) -> None:
    sha = saved(folder, a_vit(1).state_dict())
    truncated(folder / "vit" / "model.safetensors")
    with pytest.raises(
        ModelFileError, match=r"model.safetensors has sha256 .* but the study names .*download it again"
    ):
        load(sha)


def without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("norm.")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, r"2 tensor\(s\) missing of \d+, first norm.bias"),
        (lambda state: state | {"extra": torch.zeros(1)}, r"1 tensor\(s\) unexpected of \d+, first extra"),
        (lambda state: state | {"norm.bias": torch.zeros(3)}, r"norm.bias has shape \(3,\), expected \(16,\)"),
    ],
)
def test_a_checkpoint_must_fit_exactly(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, folder: Path
) -> None:
    sha = saved(folder, change(a_vit(2).state_dict()))
    with pytest.raises(ModelFileError, match=message):
        load(sha)


def test_a_prov_gigapath_checkpoint_loads_strictly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = LongNetConfig(in_width=IN, width=WIDTH, depth=2, heads=4, ffn_width=24)
    monkeypatch.setattr("modaltune.encoders.registry.LongNetConfig", lambda: small)
    sizes = {"in_width": IN, "width": WIDTH, "depth": 2}
    torch.manual_seed(0)
    state = LongNetViT(small).state_dict()
    path = folder / "longnet" / "slide_encoder.pth"
    path.parent.mkdir()
    torch.save({"model": state}, path)
    loaded = slide_encoder("longnet", **sizes, sha256=digest_file(path))
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    torch.save({"weights": state}, path)
    with pytest.raises(ModelFileError, match=r"not a readable checkpoint \(KeyError\)"):
        slide_encoder("longnet", **sizes, sha256=digest_file(path))


def test_the_real_prov_gigapath_has_its_published_size() -> None:
    encoder = blank_slide_encoder("longnet", in_width=1536, width=768, depth=12)
    assert len(encoder.state_dict()) == 247
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 86_330_880
    with pytest.raises(ConfigError, match="has in_width 1536, width 768 and depth 12, but the study says 1024, 768"):
        blank_slide_encoder("longnet", in_width=1024, width=768, depth=12)

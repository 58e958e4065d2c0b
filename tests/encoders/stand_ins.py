"""Model folders laid out like gated snapshots, with random weights."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from modaltune import _torchvision
from modaltune.storage import load_state, save_state

WORDS = ("[UNK]", "stage", "one", "two", "ductal", "lobular")


def titan_snapshot(folder: Path, **sizes: Any) -> Path:
    """A folder with code, configuration, weights and tokenizer of a small stand-in for TITAN."""
    _torchvision.install()
    shutil.copytree(Path(__file__).parent / "titan_stand_in", folder, ignore=shutil.ignore_patterns("__pycache__"))
    package = "tests.encoders.titan_stand_in"
    config = importlib.import_module(f"{package}.configuration_titan").TitanConfig(**sizes)
    config.auto_map = {"AutoConfig": "configuration_titan.TitanConfig", "AutoModel": "modeling_titan.Titan"}
    torch.manual_seed(0)
    model: nn.Module = importlib.import_module(f"{package}.modeling_titan").Titan(config)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    save_state(folder / "model.safetensors", model.state_dict())
    _tokenizer(folder)
    return folder


def change_weights(folder: Path, name: str) -> None:
    """Take one tensor out of a snapshot."""
    state = load_state(folder / "model.safetensors")
    del state[name]
    save_state(folder / "model.safetensors", state)


def _tokenizer(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token=WORDS[0]).save_pretrained(folder)

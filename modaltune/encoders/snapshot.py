"""Models whose code lies in their own folder: loaded with transformers, only after the folder's hash was checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from modaltune import _torchvision
from modaltune.errors import ModelFileError


def load_snapshot(folder: Path) -> nn.Module:
    """The model of a verified snapshot folder, frozen, in evaluation mode.

    Raises:
        ModelFileError: it does not load, or a tensor is missing, extra or of another shape.
    """
    _torchvision.install()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        reference = json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"]["AutoModel"]
        # not AutoModel: it would take the code of an earlier snapshot with the same configuration class
        code: Any = get_class_from_dynamic_module(reference, folder, local_files_only=True)
        model, found = code.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever the snapshot's own code raises
        raise ModelFileError(
            f"{folder.name}: the snapshot does not load ({type(error).__name__}); download it again, or install the"
            " packages that its model card names"
        ) from error
    _require_complete(folder.name, found)
    out: nn.Module = model.requires_grad_(False).eval()
    return out


def _require_complete(name: str, found: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(str(key) for key in found.get(kind) or ()):
            problem = kind.split("_")[0]
            raise ModelFileError(f"{name}: {len(keys)} tensor(s) {problem}, first {keys[0]}; download it again")

"""Parameter names of the published ModalTune code, translated to ours and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_FROZEN = ("patch_embed.", "cls_token", "encoder.", "norm.")
_RENAMED = {
    "gene_pe": "token_positions",
    "clinical_mlp.": "clinical_encoder.",
    "task_weight.0.bias": "task_tokens.bias",
    "task_weight.1.": "task_tokens.norm.",
}
_TASK_MATRIX = "task_weight.0.weight"


def from_published(state: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Published names -> ours; column t of the task matrix becomes the vector of ``tasks[t]``."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == _TASK_MATRIX:
            out |= {f"task_tokens.vectors.{task}": value[:, index] for index, task in enumerate(tasks)}
        elif name.startswith(_FROZEN):
            out[f"slide_encoder.{name}"] = value
        else:
            old = next((prefix for prefix in _RENAMED if name.startswith(prefix)), None)
            out[name if old is None else _RENAMED[old] + name[len(old) :]] = value
    return out


def to_published(state: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Our names -> published ones; learnt tokens for missing modalities have no counterpart and stay away."""
    out: dict[str, Tensor] = {}
    vectors = [state[f"task_tokens.vectors.{task}"] for task in tasks if f"task_tokens.vectors.{task}" in state]
    if vectors:
        out[_TASK_MATRIX] = torch.stack(vectors, dim=1)
    for name, value in state.items():
        if name.startswith(("task_tokens.vectors.", "missing.")):
            continue
        if name.startswith("slide_encoder."):
            out[name.removeprefix("slide_encoder.")] = value
        else:
            new = next((prefix for prefix in _RENAMED.values() if name.startswith(prefix)), None)
            old = next((key for key, prefix in _RENAMED.items() if prefix == new), "")
            out[name if new is None else old + name[len(new) :]] = value
    return out

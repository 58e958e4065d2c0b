"""Attention kernels that give their log-sum-exp, forward and backward, behind one interface.

Shapes: B batch, H heads, M queries, S keys, d head width. A kernel's backward takes ``out`` and ``lse`` as given, so a
caller may have enlarged the softmax denominator (and shrunk ``out``) by keys that are zero: the gradients stay exact,
because zero keys with zero values add nothing to them. The torch operators are private names; torch is pinned, and the
naive kernel is the tested reference. ``flash_attn`` is the package of that name, taken only when asked for: torch has
flash kernels of its own. It takes fp16 and bf16, no mask, and has been run here on a stand-in with its interface only.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from modaltune.errors import ConfigError

Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]
_log = logging.getLogger(__name__)
_aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """``forward(q, k, v, mask) -> (out, lse)`` and ``backward(grad, q, k, v, out, lse, mask) -> (dq, dk, dv)``.

    ``q [B, H, M, d]``, ``k, v [B, H, S, d]``, additive ``mask [B, 1, 1, S]`` or None, ``lse [B, H, M]``. A kernel with
    ``half`` computes in fp16 or bf16 only and takes no mask.
    """

    name: str
    forward: Forward
    backward: Backward
    half: bool = False


def _naive_scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores: Tensor = (q @ k.transpose(-1, -2)).float() * float(q.shape[-1]) ** -0.5
    return scores if mask is None else scores + mask


def _naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = _naive_scores(q, k, mask)
    lse = scores.logsumexp(dim=-1)
    return (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v, lse


def _naive_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    share = (_naive_scores(q, k, mask) - lse.unsqueeze(-1)).exp()
    towards = (grad @ v.transpose(-1, -2)).float() - (grad * out).float().sum(dim=-1, keepdim=True)
    scores = (share * towards * q.shape[-1] ** -0.5).to(q.dtype)
    return scores @ k, scores.transpose(-1, -2) @ q, share.to(grad.dtype).transpose(-1, -2) @ grad


def _cpu_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    full = None if mask is None else mask.to(q.dtype).expand(-1, 1, q.shape[2], -1)
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=full)
    return out, lse


def _cpu_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    full = None if mask is None else mask.to(q.dtype).expand(-1, 1, q.shape[2], -1)
    dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, False, attn_mask=full
    )
    return dq, dk, dv


def _cuda_efficient(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    full = None if mask is None else mask.to(q.dtype).expand(-1, q.shape[1], q.shape[2], -1)
    out, lse, *_ = _aten._scaled_dot_product_efficient_attention(q, k, v, full, True)
    return out, lse[..., : q.shape[2]]


def _cuda_efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    full = None if mask is None else mask.to(q.dtype).expand(-1, q.shape[1], q.shape[2], -1)
    unused = torch.zeros((), dtype=torch.long, device=q.device)  # state of a dropout that is off
    aligned = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))
    dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, full, out, aligned, unused, unused, 0.0, [True, True, True, False]
    )
    return dq, dk, dv


def _cuda_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v)
    return out, lse


def _cuda_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    unused = torch.zeros((), dtype=torch.long, device=q.device)
    dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse, unused, unused, q.shape[2], k.shape[2], 0.0, False, unused, unused
    )
    return dq, dk, dv


def _flash_attn_package() -> Any:
    return importlib.import_module("flash_attn.flash_attn_interface")


def _heads_inside(*parts: Tensor) -> list[Tensor]:
    """``[B, H, M, d]`` <-> ``[B, M, H, d]``, the layout of flash-attn."""
    return [part.transpose(1, 2) for part in parts]


def _flash_attn_settings(q: Tensor) -> dict[str, object]:
    return {
        "dropout_p": 0.0,
        "softmax_scale": float(q.shape[-1]) ** -0.5,
        "causal": False,
        "window_size_left": -1,
        "window_size_right": -1,
        "softcap": 0.0,
        "alibi_slopes": None,
    }


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    out, lse, *_ = _flash_attn_package()._flash_attn_forward(
        *_heads_inside(q, k, v), **_flash_attn_settings(q), return_softmax=False
    )
    return out.transpose(1, 2), lse


def _flash_attn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    into = [torch.empty_like(part).contiguous() for part in _heads_inside(q, k, v)]
    _flash_attn_package()._flash_attn_backward(
        *_heads_inside(grad, q, k, v, out), lse, *into, **_flash_attn_settings(q), deterministic=True
    )
    dq, dk, dv = _heads_inside(*into)
    return dq, dk, dv


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(name="naive", forward=_naive, backward=_naive_backward),
        Kernel(name="cpu_flash", forward=_cpu_flash, backward=_cpu_flash_backward),
        Kernel(name="cuda_efficient", forward=_cuda_efficient, backward=_cuda_efficient_backward),
        Kernel(name="cuda_flash", forward=_cuda_flash, backward=_cuda_flash_backward, half=True),
        Kernel(name="flash_attn", forward=_flash_attn, backward=_flash_attn_backward, half=True),
    )
}


def available_kernels() -> list[str]:
    """Kernels that run on this machine, the naive one first."""
    if not torch.cuda.is_available():
        return ["naive", "cpu_flash"]
    own = ["flash_attn"] if importlib.util.find_spec("flash_attn") else []
    return ["naive", "cpu_flash", "cuda_efficient", "cuda_flash", *own]


def preferred_kernel() -> str:
    """``$MODALTUNE_ATTENTION``, the choice of a machine; ``auto`` without it."""
    return os.environ.get("MODALTUNE_ATTENTION", "auto")


def check_kernel(name: str) -> None:
    """Refuse a kernel that is unknown or does not run on this machine."""
    here = ("auto", *available_kernels())
    if name in here:
        return
    if name not in KERNELS:
        raise ConfigError(f"unknown attention kernel {name!r}; choose from auto, {', '.join(sorted(KERNELS))}")
    package = " and the package flash-attn (extra 'gpu')" if name == "flash_attn" else ""
    raise ConfigError(
        f"attention kernel {name!r} needs a GPU{package}, which this machine lacks; choose from {', '.join(here)}"
        " (MODALTUNE_ATTENTION)"
    )


def kernel_for(name: str, q: Tensor, *, masked: bool) -> Kernel:
    """The kernel called ``name``; ``auto`` takes the fastest that handles the device, the type and a mask."""
    return _chosen(name, q.device.type, q.dtype, masked=masked)


@cache
def _chosen(name: str, device: str, dtype: torch.dtype, *, masked: bool) -> Kernel:
    """Logged when it is first chosen."""
    kernel = KERNELS[automatic(device, dtype, masked=masked) if name == "auto" else name]
    if kernel.name.startswith("cuda") and device != "cuda":
        raise ConfigError(f"attention kernel {name!r} runs on a GPU only, but the model is on {device}; choose 'auto'")
    if kernel.half and masked:
        raise ConfigError(f"attention kernel {name!r} takes no padded batch; choose 'auto' or one case a pass")
    _log.info("attention kernel %s for %s on %s%s", kernel.name, dtype, device, ", with padding" if masked else "")
    return kernel


def automatic(device: str, dtype: torch.dtype, *, masked: bool) -> str:
    """The kernel that ``auto`` stands for."""
    if device == "cuda":
        half = dtype in (torch.float16, torch.bfloat16)
        return "cuda_flash" if half and not masked else "cuda_efficient"
    return "cpu_flash" if device == "cpu" else "naive"

"""Dilated attention of LongNet (Ding et al., 2023), as Prov-GigaPath's slide encoder uses it.

Shapes: B cases, H heads, N tokens (CLS first), d head width; a branch has n segments of s tokens, and in each segment
a head keeps every r-th token, m of them. Zero-padded keys count in the softmax denominator, and the weights that join
the branches are constants for the backward pass: both follow the reference and are checked by golden vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modaltune.errors import ConfigError

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
_UNCOVERED = -1e8


def naive_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention by its definition. ``[B, H, M, d]`` and an additive ``[B, 1, 1, M]`` mask give (out, log-sum-exp)."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    lse = scores.float().logsumexp(dim=-1)
    return (scores - lse.unsqueeze(-1).to(scores.dtype)).exp() @ v, lse


def cpu_flash_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Torch's blocked CPU kernel; it returns the log-sum-exp that the public function hides."""
    full = None if mask is None else mask.expand(q.shape[0], 1, q.shape[2], k.shape[2])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=full)
    return out, lse


def cuda_efficient_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Torch's memory-efficient CUDA kernel: fp32, fp16 and bf16, with a mask."""
    full = None if mask is None else mask.to(q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, full, True)
    return out, lse[..., : q.shape[2]]


KERNELS: dict[str, Kernel] = {
    "naive": naive_kernel,
    "cpu_flash": cpu_flash_kernel,
    "cuda_efficient": cuda_efficient_kernel,
}


def kernel_for(name: str, device: torch.device) -> Kernel:
    """The kernel called ``name``; ``auto`` takes the fast one of the device."""
    if name == "auto":
        name = "cuda_efficient" if device.type == "cuda" else "cpu_flash" if device.type == "cpu" else "naive"
    if name not in KERNELS:
        raise ConfigError(f"unknown attention kernel {name!r}; choose from auto, {', '.join(sorted(KERNELS))}")
    return KERNELS[name]


@dataclass(frozen=True, kw_only=True)
class DilatedConfig:
    """Segment lengths and dilation ratios, one pair a branch."""

    segments: tuple[int, ...] = (1024, 5792, 32768, 185363, 1048576)
    ratios: tuple[int, ...] = (1, 2, 4, 8, 16)
    kernel: str = "auto"

    def __post_init__(self) -> None:
        if len(self.segments) != len(self.ratios) or not self.segments:
            raise ConfigError(f"dilated attention needs one ratio a segment, got {self.segments} and {self.ratios}")
        if min(self.segments) < 1 or min(self.ratios) < 1:
            raise ConfigError(f"segments and ratios must be positive, got {self.segments} and {self.ratios}")

    def check_length(self, tokens: int) -> None:
        """Refuse lengths at which the published code misplaces tokens (several segments, not a multiple of r)."""
        for segment, ratio in zip(self.segments, self.ratios, strict=True):
            if tokens > segment and segment % ratio:
                raise ConfigError(
                    f"dilated attention: segment {segment} is not a multiple of its ratio {ratio}, so {tokens} tokens"
                    " would need the misaligned joining of the published code; choose a multiple or a longer segment"
                )


def _head_view(x: Tensor, ratio: int, segment: int) -> Tensor:
    """``[B, H, N, d]`` -> view ``[B, w, n, m, d, r]`` in which head group g sees positions g, g + r, ..."""
    batch, heads, tokens, width = x.shape
    count, kept = math.ceil(tokens / segment), math.ceil(segment / ratio)
    x = F.pad(x, (0, 0, 0, count * segment - tokens, 0, -heads % ratio))
    x = x.reshape(batch, -1, count, segment, width)
    x = F.pad(x, (0, 0, 0, kept * ratio - segment))
    return x.reshape(batch, ratio, -1, count, kept, ratio, width).diagonal(dim1=1, dim2=5)


def _branch_mask(lengths: Tensor, tokens: int, segment: int, ratio: int, full_segment: int) -> Tensor:
    """Additive ``[B * n, 1, 1, m]`` mask of the keys that a case of its own length would not have."""
    count, kept = math.ceil(tokens / segment), math.ceil(segment / ratio)
    alone = torch.where(lengths <= full_segment, -(-lengths // ratio), kept)  # m of the case on its own
    segments = (-(-lengths // full_segment)).clamp(min=1)
    index = torch.arange(kept, device=lengths.device)
    allowed = index[None, None, :] < alone[:, None, None]
    active = torch.arange(count, device=lengths.device)[None, :, None] < segments[:, None, None]
    allowed = allowed | ~active  # segments beyond the case: their output is dropped, it only must be finite
    mask = torch.zeros(allowed.shape, device=lengths.device).masked_fill(~allowed, float("-inf"))
    return mask.reshape(-1, 1, 1, kept)


def sparse_branch(
    q: Tensor, k: Tensor, v: Tensor, segment: int, ratio: int, kernel: Kernel, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention inside one branch.

    Args:
        q, k, v: ``[B, H, N, d]``.
        segment: segment length of the configuration (cut to N here).
        ratio: keep every r-th token of a segment.
        kernel: see :data:`KERNELS`.
        lengths: ``[B]`` tokens of each case, None when all have N.
    Returns:
        out ``[B, n, Hp, m, d]`` and log-sum-exp ``[B, n, Hp, m]`` with heads padded to Hp, a multiple of r.
    """
    batch, _, tokens, width = q.shape
    cut = min(segment, tokens)
    views = [_head_view(x, ratio, cut) for x in (q, k, v)]  # [B, w, n, m, d, r]
    count, kept = views[0].shape[2], views[0].shape[3]
    flat = [x.permute(0, 2, 5, 1, 3, 4).reshape(batch * count, -1, kept, width) for x in views]
    mask = None if lengths is None else _branch_mask(lengths, tokens, cut, ratio, segment)
    out, lse = kernel(flat[0], flat[1], flat[2], None if mask is None else mask.to(q.dtype))
    return out.reshape(batch, count, -1, kept, width), lse.reshape(batch, count, -1, kept)


def _to_dense(x: Tensor, fill: float, ratio: int, segment: int, heads: int, tokens: int) -> Tensor:
    """``[B, n, Hp, m, e]`` back to ``[B, H, N, e]``; what the branch did not select is ``fill``."""
    batch, count, padded, kept, width = x.shape
    group = padded // ratio
    dense = x.new_full((batch, ratio, group, count, kept, ratio, width), fill)
    source = x.view(batch, count, ratio, group, kept, width).permute(0, 3, 1, 4, 5, 2)
    dense = torch.diagonal_scatter(dense, source, dim1=1, dim2=5)
    dense = dense.view(batch, padded, count, kept * ratio, width)[:, :heads, :, :segment]
    return dense.reshape(batch, heads, count * segment, width)[:, :, :tokens]


def dilated_attention(q: Tensor, k: Tensor, v: Tensor, config: DilatedConfig, lengths: Tensor | None = None) -> Tensor:
    """Join all branches.

    Args:
        q, k, v: ``[B, H, N, d]``.
        config: branches and kernel.
        lengths: ``[B]`` tokens of each case when cases of different length share a batch; keys and values beyond a
            case's length must be zero. The result equals attention case by case.
    Returns:
        ``[B, H, N, d]``.
    """
    heads, tokens = q.shape[1], q.shape[2]
    config.check_length(tokens)
    kernel = kernel_for(config.kernel, q.device)
    outs, weights = [], []
    for segment, ratio in zip(config.segments, config.ratios, strict=True):
        out, lse = sparse_branch(q, k, v, segment, ratio, kernel, lengths)
        cut = min(segment, tokens)
        outs.append(_to_dense(out, 0.0, ratio, cut, heads, tokens))
        weights.append(_to_dense(lse.detach().unsqueeze(-1), _UNCOVERED, ratio, cut, heads, tokens))
    joint = torch.stack(weights).softmax(dim=0).to(q.dtype)  # constants: no gradient through lse
    return (torch.stack(outs) * joint).sum(dim=0)

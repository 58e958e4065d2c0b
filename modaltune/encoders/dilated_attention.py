"""Dilated attention of LongNet (Ding et al., 2023), as Prov-GigaPath's slide encoder uses it.

Shapes: B cases, H heads, N tokens (CLS first), d head width; a branch has n segments of s tokens, and in each segment
a head keeps every r-th token, m of them. Zero-padded keys count in the softmax denominator, and the weights that join
the branches are constants for the backward pass: both follow the reference and are checked by golden vectors.

The padding of a last, shorter segment is counted and never computed: z zero keys add log z to the log-sum-exp. Tokens
are gathered and scattered through strided views, and only q, k, v and each branch's sparse output are kept for the
backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from modaltune.encoders.attention_kernels import check_kernel, kernel_for, preferred_kernel
from modaltune.errors import ConfigError

_UNCOVERED = -1e8


@dataclass(frozen=True, kw_only=True)
class DilatedConfig:
    """Segment lengths and dilation ratios, one pair a branch."""

    segments: tuple[int, ...] = (1024, 5792, 32768, 185363, 1048576)
    ratios: tuple[int, ...] = (1, 2, 4, 8, 16)
    kernel: str = field(default_factory=preferred_kernel)

    def __post_init__(self) -> None:
        if len(self.segments) != len(self.ratios) or not self.segments:
            raise ConfigError(f"dilated attention needs one ratio a segment, got {self.segments} and {self.ratios}")
        if min(self.segments) < 1 or min(self.ratios) < 1:
            raise ConfigError(f"segments and ratios must be positive, got {self.segments} and {self.ratios}")
        check_kernel(self.kernel)

    def check_length(self, tokens: int) -> None:
        """Refuse lengths at which the published code misplaces tokens (several segments, not a multiple of r)."""
        for segment, ratio in zip(self.segments, self.ratios, strict=True):
            if tokens > segment and segment % ratio:
                raise ConfigError(
                    f"dilated attention: segment {segment} is not a multiple of its ratio {ratio}, so {tokens} tokens"
                    " would need the misaligned joining of the published code; choose a multiple or a longer segment"
                )


@dataclass(frozen=True)
class _Piece:
    """``count`` segments of ``kept * ratio`` places each, from token ``start`` on."""

    branch: int
    heads: int  # padded to a multiple of the ratio
    ratio: int
    start: int
    count: int
    kept: int
    zero_keys: int  # keys of the padded segment that are left away
    segment: int  # of the configuration

    @property
    def stop(self) -> int:
        return self.start + self.count * self.kept * self.ratio

    def view(self, x: Tensor) -> Tensor:
        """``[B, H, N, e]`` -> view ``[B, n, r, w, m, e]`` in which head group g sees places g, g + r, ..."""
        used = x[:, : self.heads, self.start : self.stop]
        parts = used.unflatten(2, (self.count, self.kept, self.ratio)).unflatten(1, (self.ratio, -1))
        view: Tensor = parts.diagonal(dim1=1, dim2=5).permute(0, 2, 5, 1, 3, 4)
        return view

    def gather(self, x: Tensor) -> Tensor:
        """``[B, H, N, e]`` -> ``[B * n, Hp, m, e]``, Hp heads padded to a multiple of r."""
        return self.view(x).flatten(2, 3).flatten(0, 1)

    def spread(self, sparse: Tensor, like: Tensor) -> Tensor:
        """``[B * n, Hp, m, e]`` in the shape of ``view(like)``."""
        return sparse.view(len(like), self.count, self.ratio, -1, self.kept, sparse.shape[-1])


def _pieces(config: DilatedConfig, heads: int, tokens: int, *, ragged: bool) -> Iterator[_Piece]:
    """A branch is its full segments and a shorter last one; ragged batches keep one padded piece and mask it."""
    for branch, (segment, ratio) in enumerate(zip(config.segments, config.ratios, strict=True)):
        padded = math.ceil(heads / ratio) * ratio
        if ragged or tokens <= segment:
            cut = min(segment, tokens)
            yield _Piece(branch, padded, ratio, 0, math.ceil(tokens / cut), math.ceil(cut / ratio), 0, segment)
            continue
        full, rest = divmod(tokens, segment)
        kept = segment // ratio
        yield _Piece(branch, padded, ratio, 0, full, kept, 0, segment)
        if rest:
            last = math.ceil(rest / ratio)
            yield _Piece(branch, padded, ratio, full * segment, 1, last, kept - last, segment)


def _mask(lengths: Tensor, piece: _Piece) -> Tensor:
    """Additive ``[B * n, 1, 1, m]`` mask of the keys that a case of its own length would not have."""
    alone = torch.where(lengths <= piece.segment, -(-lengths // piece.ratio), piece.kept)  # m of the case on its own
    segments = (-(-lengths // piece.segment)).clamp(min=1)
    index = torch.arange(piece.kept, device=lengths.device)
    allowed = index[None, None, :] < alone[:, None, None]
    active = torch.arange(piece.count, device=lengths.device)[None, :, None] < segments[:, None, None]
    allowed = allowed | ~active  # segments beyond the case: their output is dropped, it only must be finite
    mask = torch.zeros(allowed.shape, device=lengths.device).masked_fill(~allowed, float("-inf"))
    return mask.reshape(-1, 1, 1, piece.kept)


def _room(x: Tensor, pieces: list[_Piece]) -> Tensor:
    """Pad heads and tokens so that every piece is a view."""
    heads = max(piece.heads for piece in pieces)
    tokens = max(x.shape[2], *(piece.stop for piece in pieces))
    return F.pad(x, (0, 0, 0, tokens - x.shape[2], 0, heads - x.shape[1]))


def _attend(config: DilatedConfig, piece: _Piece, parts: list[Tensor], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sparse output ``[B * n, Hp, m, d]`` and log-sum-exp ``[B * n, Hp, m]`` of a piece, its zero keys counted."""
    out, lse = kernel_for(config.kernel, parts[0], masked=mask is not None).forward(parts[0], parts[1], parts[2], mask)
    if piece.zero_keys:
        total = torch.logaddexp(lse, lse.new_tensor(math.log(piece.zero_keys)))
        out, lse = out * (lse - total).exp().unsqueeze(-1).to(out.dtype), total
    return out, lse


def _shares(pieces: list[_Piece], lses: list[Tensor], like: Tensor) -> Tensor:
    """Weight of each branch at each place and head, ``[branches, B, H, N, 1]``; they sum to one over branches."""
    branches = pieces[-1].branch + 1
    dense = lses[0].new_full((branches, *like.shape[:3], 1), _UNCOVERED)
    for piece, lse in zip(pieces, lses, strict=True):
        target = dense[piece.branch]
        piece.view(target).copy_(piece.spread(lse.unsqueeze(-1), target))
    return dense.softmax(dim=0)


class _DilatedAttention(torch.autograd.Function):
    """All branches at once; the branch weights are constants of the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, config: DilatedConfig, lengths: Tensor | None) -> Tensor:
        heads, tokens = q.shape[1], q.shape[2]
        pieces = list(_pieces(config, heads, tokens, ragged=lengths is not None))
        masks = [None if lengths is None else _mask(lengths, piece) for piece in pieces]
        padded = [_room(x, pieces) for x in (q, k, v)]
        sparse = [
            _attend(config, piece, [piece.gather(x) for x in padded], mask)
            for piece, mask in zip(pieces, masks, strict=True)
        ]
        shares = _shares(pieces, [lse for _, lse in sparse], padded[0])
        total = torch.zeros_like(padded[0], memory_format=torch.contiguous_format)
        for piece, (out, _) in zip(pieces, sparse, strict=True):
            share = piece.view(shares[piece.branch]).to(out.dtype)
            piece.view(total).add_(piece.spread(out, total) * share)
        ctx.config, ctx.pieces, ctx.masks = config, pieces, masks
        ctx.save_for_backward(q, k, v, *(part for pair in sparse for part in pair))
        return total[:, :heads, :tokens]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        config, pieces = ctx.config, ctx.pieces
        q, k, v, *sparse = ctx.saved_tensors
        outs, lses = sparse[0::2], sparse[1::2]
        padded = [_room(x, pieces) for x in (q, k, v)]
        grad = _room(grad, pieces)
        shares = _shares(pieces, lses, grad)
        totals = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in padded]
        for piece, mask, out, lse in zip(pieces, ctx.masks, outs, lses, strict=True):
            parts = [piece.gather(x) for x in padded]
            share = piece.gather(shares[piece.branch]).to(grad.dtype)
            kernel = kernel_for(config.kernel, parts[0], masked=mask is not None)
            found = kernel.backward(piece.gather(grad) * share, parts[0], parts[1], parts[2], out, lse, mask)
            for total, part in zip(totals, found, strict=True):
                piece.view(total).add_(piece.spread(part.contiguous(), total))
        heads, tokens = q.shape[1], q.shape[2]
        dq, dk, dv = (total[:, :heads, :tokens] for total in totals)
        return dq, dk, dv, None, None


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
    config.check_length(q.shape[2])
    out: Tensor = _DilatedAttention.apply(q, k, v, config, lengths)  # type: ignore[no-untyped-call]
    return out


def sparse_branches(q: Tensor, k: Tensor, v: Tensor, config: DilatedConfig) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For inspection: of each piece the branch, ``[B * n, Hp, m, d]`` outputs and ``[B * n, Hp, m]`` log-sum-exps."""
    pieces = list(_pieces(config, q.shape[1], q.shape[2], ragged=False))
    padded = [_room(x, pieces) for x in (q, k, v)]
    for piece in pieces:
        out, lse = _attend(config, piece, [piece.gather(x) for x in padded], None)
        yield piece.branch, out, lse

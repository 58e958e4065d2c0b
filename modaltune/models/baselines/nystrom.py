"""Nystrom attention: softmax attention through landmarks, linear in the number of tokens.

Shapes: B cases, T tokens, D width, H heads, L landmarks, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KERNEL = 33


def landmark_means(x: Tensor, landmarks: int) -> Tensor:
    """Means of L neighbouring stretches of tokens: ``[B, H, T, d] -> [B, H, L, d]``."""
    means = F.adaptive_avg_pool1d(x.transpose(-1, -2).flatten(0, 1), landmarks)
    out: Tensor = means.unflatten(0, x.shape[:2]).transpose(-1, -2)
    return out


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose inverse ``[..., L, L]`` of softmax matrices by a cubic iteration, each matrix for itself."""
    size = matrix.abs()
    bound = size.sum(dim=-1).amax(dim=-1) * size.sum(dim=-2).amax(dim=-1)
    inverse = matrix.transpose(-1, -2) / bound[..., None, None]
    identity = torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return inverse


def nystrom(q: Tensor, k: Tensor, v: Tensor, landmarks: int, iterations: int) -> Tensor:
    """Approximates ``softmax(q k' / sqrt(d)) v``; all ``[B, H, T, d]``."""
    q = q * q.shape[-1] ** -0.5
    few_q, few_k = landmark_means(q, landmarks), landmark_means(k, landmarks)
    to_landmarks = (q @ few_k.transpose(-1, -2)).softmax(dim=-1)  # [B, H, T, L]
    among = (few_q @ few_k.transpose(-1, -2)).softmax(dim=-1)  # [B, H, L, L]
    from_landmarks = (few_q @ k.transpose(-1, -2)).softmax(dim=-1)  # [B, H, L, T]
    return to_landmarks @ (pseudo_inverse(among, iterations) @ (from_landmarks @ v))


class NystromAttention(nn.Module):
    """Multi-head attention; with no more tokens than landmarks it is exact, which is what landmarks approximate."""

    def __init__(self, width: int, *, heads: int = 8, landmarks: int = 256, iterations: int = 6) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.residual = nn.Conv2d(heads, heads, (_KERNEL, 1), padding=(_KERNEL // 2, 0), groups=heads, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` -> same shape; all tokens are real."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if x.shape[1] <= self.landmarks:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = nystrom(q, k, v, self.landmarks, self.iterations)
        mixed = mixed + self.residual(v)  # neighbours in the order of the tokens
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

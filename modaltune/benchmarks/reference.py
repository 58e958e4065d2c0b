"""The plain path that benchmarks compare with.

A pass for each task with all graphs alive, a network for each gene set, and dilated attention that gathers by index and
joins dense copies.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.data.batch import CaseTensors, collate
from modaltune.encoders.dilated_attention import DilatedConfig
from modaltune.encoders.gene import PaperGeneEncoder
from modaltune.models.learner import Learner
from modaltune.tasks.objectives import OBJECTIVES


class SetBySet(nn.Module):
    """The published gene encoder with one small network per gene set, sharing the weights of a batched one."""

    def __init__(self, batched: PaperGeneEncoder, indices: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.indices = [list(members) for members in indices]
        self.gene_networks = nn.ModuleList()
        first = batched.first.weight.detach().split(batched.first.sizes)
        latent = batched.second_weight.shape[1]
        for row, members in enumerate(self.indices):
            layers = nn.Sequential(nn.Linear(len(members), latent), nn.ELU(), nn.Linear(latent, latent), nn.ELU())
            state = {
                "0.weight": first[row].T,
                "0.bias": batched.first.bias[row],
                "2.weight": batched.second_weight[row].T,
                "2.bias": batched.second_bias[row],
            }
            layers.load_state_dict(state)
            self.gene_networks.append(layers)
        self.mlp_mixer, self.pathway_compression = batched.mlp_mixer, batched.pathway_compression

    def forward(self, expression: Tensor) -> Tensor:
        """``[B, G]`` -> ``[B, T, D]``."""
        mixed = self.mlp_mixer(self.pathways(expression))
        out: Tensor = self.pathway_compression(mixed.transpose(1, 2)).transpose(1, 2)
        return out

    def pathways(self, expression: Tensor) -> Tensor:
        """The layers that each set has for itself: ``[B, G]`` -> ``[B, P, H]``."""
        rows = [net(expression[:, members]) for net, members in zip(self.gene_networks, self.indices, strict=True)]
        return torch.stack(rows, dim=1)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention by its definition, differentiated by autograd."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)


def index_gather_attention(
    q: Tensor, k: Tensor, v: Tensor, config: DilatedConfig, lengths: Tensor | None = None
) -> Tensor:
    """Dilated attention ``[B, H, N, d]``: every branch padded, gathered by index, and scattered to a dense copy."""
    attend = plain_attention if config.kernel == "naive" else _flash
    outs, lses = [], []
    for segment, ratio in zip(config.segments, config.ratios, strict=True):
        out, lse = _branch(q, k, v, segment, ratio, attend)
        outs.append(out)
        lses.append(lse)
    weights = torch.stack(lses).detach().softmax(dim=0).unsqueeze(-1)
    return (torch.stack(outs) * weights).sum(dim=0)


def _branch(q: Tensor, k: Tensor, v: Tensor, segment: int, ratio: int, attend: object) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    cut = min(segment, tokens)
    count, kept = math.ceil(tokens / cut), math.ceil(cut / ratio)
    room = kept * ratio
    group = torch.arange(heads) // math.ceil(heads / ratio)
    index = (group[:, None] + ratio * torch.arange(kept))[None, None, :, :, None]  # [1, 1, H, m, 1]
    index = index.expand(batch, count, -1, -1, width)

    def gather(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, count * cut - tokens)).unflatten(2, (count, cut)).transpose(1, 2)
        return F.pad(x, (0, 0, 0, room - cut)).gather(3, index).flatten(0, 1)

    out, lse = attend(gather(q), gather(k), gather(v))  # type: ignore[operator]
    out, lse = out.unflatten(0, (batch, count)), lse.unflatten(0, (batch, count))
    dense = q.new_zeros(batch, count, heads, room, width).scatter(3, index, out)
    dense_lse = q.new_full((batch, count, heads, room), -1e8).scatter(3, index[..., 0], lse.detach())
    joined = dense[:, :, :, :cut].transpose(1, 2).flatten(2, 3)[:, :, :tokens]
    return joined, dense_lse[:, :, :, :cut].transpose(1, 2).flatten(2, 3)[:, :, :tokens]


def sequential_step(learner: Learner, case: CaseTensors) -> None:
    """One complete forward pass for each task, then one backward pass through all of them."""
    losses = []
    for task, (index, observed) in case.targets.items():
        embedding = learner(collate([case]), torch.tensor([0]), [task])
        target = torch.tensor([index]), torch.tensor([observed])
        losses.append(OBJECTIVES["contrastive"](learner.head, embedding, task, learner.kinds[task], *target))
    torch.stack(losses).mean().backward()

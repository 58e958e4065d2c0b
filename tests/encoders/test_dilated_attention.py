"""Shapes as in the module: B cases, H heads, N tokens, d head width."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modaltune.encoders.attention_kernels import _chosen, automatic, available_kernels, kernel_for
from modaltune.encoders.dilated_attention import DilatedConfig, dilated_attention
from modaltune.errors import ConfigError

HEADS, WIDTH = 3, 4
CONFIGS = {
    "one segment": DilatedConfig(segments=(64,), ratios=(1,), kernel="naive"),
    "short segments": DilatedConfig(segments=(4,), ratios=(2,), kernel="naive"),
    "three branches": DilatedConfig(segments=(4, 8, 16), ratios=(1, 2, 4), kernel="naive"),
    "more offsets than heads": DilatedConfig(segments=(5, 16), ratios=(1, 8), kernel="naive"),
    "unaligned but never cut": DilatedConfig(segments=(3, 65), ratios=(1, 4), kernel="naive"),
}


def some_inputs(batch: int, tokens: int, seed: int = 0, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, heads, tokens, WIDTH, generator=generator).unbind()
    return q, k, v


def gradients(inputs: tuple[Tensor, ...], out: Tensor) -> tuple[Tensor, ...]:
    """Of a sum with fixed random weights, so that no two outputs count alike."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((out * weight).sum(), inputs)


def one_branch(q: Tensor, k: Tensor, v: Tensor, segment: int, ratio: int) -> tuple[Tensor, Tensor]:
    """The definition, one case, head and segment at a time: dense output and log-sum-exp (-1e8 where not selected)."""
    heads, tokens = q.shape[1:3]
    segment = min(segment, tokens)
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -1e8)
    for case in range(len(q)):
        for head in range(heads):
            offset = head // math.ceil(heads / ratio)
            for start in range(0, tokens, segment):
                kept = [start + p for p in range(offset, segment, ratio) if start + p < tokens]
                padded = math.ceil(segment / ratio) - len(kept)  # zero keys, zero values
                if kept:
                    scores = q[case, head, kept] @ F.pad(k[case, head, kept], (0, 0, 0, padded)).T / WIDTH**0.5
                    out[case, head, kept] = scores.softmax(-1) @ F.pad(v[case, head, kept], (0, 0, 0, padded))
                    lse[case, head, kept] = scores.logsumexp(-1)
    return out, lse


def by_definition(q: Tensor, k: Tensor, v: Tensor, config: DilatedConfig, *, constant_weights: bool = True) -> Tensor:
    branches = [one_branch(q, k, v, *branch) for branch in zip(config.segments, config.ratios, strict=True)]
    lse = torch.stack([lse for _, lse in branches])
    weights = (lse.detach() if constant_weights else lse).softmax(dim=0)
    return (torch.stack([out for out, _ in branches]) * weights.unsqueeze(-1)).sum(dim=0)


def with_kernel(config: DilatedConfig, kernel: str) -> DilatedConfig:
    return DilatedConfig(segments=config.segments, ratios=config.ratios, kernel=kernel)


@pytest.mark.parametrize("tokens", [1, 3, 16, 19])
@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_gradients_equal_the_definition(name: str, tokens: int) -> None:
    inputs = tuple(x.requires_grad_() for x in some_inputs(2, tokens))
    ours, defined = dilated_attention(*inputs, CONFIGS[name]), by_definition(*inputs, CONFIGS[name])
    torch.testing.assert_close(ours, defined)
    torch.testing.assert_close(gradients(inputs, ours), gradients(inputs, defined))


@pytest.mark.parametrize("lengths", [None, (19, 8, 1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_fast_cpu_kernel_agrees_with_the_naive_one(name: str, lengths: tuple[int, ...] | None) -> None:
    inputs = tuple(x.requires_grad_() for x in some_inputs(3, 19))
    fast, naive = (
        padded_attention(inputs, with_kernel(CONFIGS[name], kernel), lengths) for kernel in ("cpu_flash", "naive")
    )
    torch.testing.assert_close(fast, naive)
    torch.testing.assert_close(gradients(inputs, fast), gradients(inputs, naive), atol=2e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("lengths", [None, (19, 8, 1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_cuda_kernel_agrees_with_the_naive_one(name: str, lengths: tuple[int, ...] | None) -> None:
    inputs = tuple(x.requires_grad_() for x in some_inputs(3, 19))
    on_gpu = tuple(x.detach().cuda().requires_grad_() for x in inputs)
    naive = padded_attention(inputs, CONFIGS[name], lengths)
    fast = padded_attention(on_gpu, with_kernel(CONFIGS[name], "cuda_efficient"), lengths)
    torch.testing.assert_close(fast.cpu(), naive, atol=1e-4, rtol=1e-3)
    weight = torch.randn(naive.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((fast * weight.cuda()).sum(), on_gpu)
    torch.testing.assert_close(tuple(x.cpu() for x in found), gradients(inputs, naive), atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kernel", [name for name in available_kernels() if name not in ("naive", "cpu_flash")])
def test_half_precision_on_cuda_agrees_with_full(kernel: str) -> None:
    config = DilatedConfig(segments=(16, 46, 128), ratios=(1, 2, 4), kernel="naive")
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(1, 8, 61, 16, generator=generator).requires_grad_() for _ in range(3))
    halves = tuple(x.detach().cuda().bfloat16().requires_grad_() for x in inputs)
    full = dilated_attention(inputs[0], inputs[1], inputs[2], config)
    half = dilated_attention(halves[0], halves[1], halves[2], with_kernel(config, kernel))
    torch.testing.assert_close(half.float().cpu(), full, atol=3e-2, rtol=3e-2)
    weight = torch.randn(full.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((half * weight.cuda().bfloat16()).sum(), halves)
    for ours, expected in zip(found, gradients(inputs, full), strict=True):
        assert float((ours.float().cpu() - expected).norm() / expected.norm()) < 0.03


FLASH_ATTN = """
from modaltune.encoders.attention_kernels import KERNELS
NAIVE = KERNELS["naive"]
def swap(*parts):
    return [part.transpose(1, 2) for part in parts]
def _flash_attn_forward(q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
                        alibi_slopes, return_softmax):
    assert abs(softmax_scale - q.shape[-1] ** -0.5) < 1e-9 and dropout_p == softcap == 0 and not causal
    out, lse = NAIVE.forward(*swap(q, k, v), None)
    return *swap(out), lse, None, None
def _flash_attn_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
                         window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None):
    grad, q, k, v, out = swap(dout, q, k, v, out)
    for into, value in zip((dq, dk, dv), swap(*NAIVE.backward(grad, q, k, v, out, softmax_lse, None)), strict=True):
        into.copy_(value)
    return softmax_lse
"""


def test_the_flash_attn_package_is_called_in_its_own_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DilatedConfig(segments=(16, 46, 128), ratios=(1, 2, 4), kernel="naive")
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(1, 8, 61, 16, generator=generator).requires_grad_() for _ in range(3))
    expected = dilated_attention(inputs[0], inputs[1], inputs[2], config)
    with pytest.raises(ConfigError, match=r"'flash_attn' needs a GPU and the package flash-attn \(extra 'gpu'\)"):
        with_kernel(config, "flash_attn")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("")
    (tmp_path / "flash_attn" / "flash_attn_interface.py").write_text(FLASH_ATTN)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = dilated_attention(inputs[0], inputs[1], inputs[2], with_kernel(config, "flash_attn"))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(inputs, found), gradients(inputs, expected))


def padded_attention(inputs: tuple[Tensor, ...], config: DilatedConfig, lengths: tuple[int, ...] | None) -> Tensor:
    """Attention of a padded batch, zero where a case has no token."""
    if lengths is None:
        return dilated_attention(*inputs, config)
    count = torch.tensor(lengths, device=inputs[0].device)
    inside = (torch.arange(inputs[0].shape[2], device=count.device) < count[:, None])[:, None, :, None]
    q, k, v = inputs
    return dilated_attention(q, k * inside, v * inside, config, count) * inside


@given(
    lengths=st.lists(st.integers(1, 37), min_size=1, max_size=4),
    name=st.sampled_from(sorted(CONFIGS)),
    heads=st.integers(1, 5),
    kernel=st.sampled_from(["naive", "cpu_flash"]),
)
@settings(max_examples=100, deadline=None)
def test_a_padded_batch_equals_attention_case_by_case(lengths: list[int], name: str, heads: int, kernel: str) -> None:
    config = with_kernel(CONFIGS[name], kernel)
    inputs = tuple(x.requires_grad_() for x in some_inputs(len(lengths), max(lengths), heads=heads))
    together = padded_attention(inputs, config, tuple(lengths))
    alone = torch.stack(
        [
            F.pad(
                dilated_attention(*(x[row : row + 1, :, :length] for x in inputs), config)[0],
                (0, 0, 0, max(lengths) - length),
            )
            for row, length in enumerate(lengths)
        ]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients(inputs, together), gradients(inputs, alone), atol=2e-5, rtol=1e-4)


def test_lengths_at_and_across_segment_borders_equal_case_by_case() -> None:
    lengths = (3, 4, 5, 7, 8, 9, 15, 16, 17)
    inputs = some_inputs(len(lengths), max(lengths))
    together = padded_attention(inputs, CONFIGS["three branches"], lengths)
    for row, length in enumerate(lengths):
        alone = dilated_attention(*(x[row : row + 1, :, :length] for x in inputs), CONFIGS["three branches"])
        torch.testing.assert_close(together[row : row + 1, :, :length], alone)


@pytest.mark.parametrize("name", ["three branches", "unaligned but never cut"])
def test_the_weights_that_join_branches_are_constants_for_the_gradient(name: str) -> None:
    inputs = tuple(x.requires_grad_() for x in some_inputs(2, 16))
    ours = gradients(inputs, dilated_attention(*inputs, CONFIGS[name]))
    let_through = gradients(inputs, by_definition(*inputs, CONFIGS[name], constant_weights=False))
    for name_, mine, other in zip("qkv", ours, let_through, strict=True):
        difference = float((mine - other).norm() / mine.norm())
        assert difference < 1e-5 if name_ == "v" else difference > 0.01, name_


def test_one_undilated_segment_is_ordinary_attention() -> None:
    q, k, v = some_inputs(2, 9)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(dilated_attention(q, k, v, CONFIGS["one segment"]), expected)


def test_tokens_of_other_segments_have_no_influence() -> None:
    config = DilatedConfig(segments=(4,), ratios=(1,), kernel="naive")
    q, k, v = some_inputs(1, 12)
    before = dilated_attention(q, k, v, config)
    k[:, :, 4:8] += 1
    changed = (dilated_attention(q, k, v, config) != before).any(dim=-1)[0]
    assert changed[:, 4:8].all()
    assert not changed[:, :4].any()
    assert not changed[:, 8:].any()


def test_positions_that_no_branch_covers_are_zero() -> None:
    out = dilated_attention(*some_inputs(1, 12, heads=1), DilatedConfig(segments=(12,), ratios=(4,), kernel="naive"))
    covered = torch.arange(12) % 4 == 0
    assert (out[0, 0, covered] != 0).all()
    assert (out[0, 0, ~covered] == 0).all()


def test_a_length_that_would_need_misaligned_joining_is_refused() -> None:
    config = DilatedConfig(segments=(5,), ratios=(2,))
    assert dilated_attention(*some_inputs(1, 5), config).shape == (1, HEADS, 5, WIDTH)
    with pytest.raises(ConfigError, match="segment 5 is not a multiple of its ratio 2, so 6 tokens"):
        dilated_attention(*some_inputs(1, 6), config)


@pytest.mark.parametrize(
    ("segments", "ratios", "message"),
    [((4, 8), (1,), "one ratio a segment"), ((), (), "one ratio a segment"), ((4,), (0,), "must be positive")],
)
def test_a_malformed_configuration_is_refused(segments: tuple[int, ...], ratios: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DilatedConfig(segments=segments, ratios=ratios)


def test_an_unknown_kernel_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'fast'; choose from auto, cpu_flash, .*naive"):
        DilatedConfig(kernel="fast")


def test_a_machine_may_choose_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALTUNE_ATTENTION", "naive")
    assert DilatedConfig().kernel == "naive"
    monkeypatch.setenv("MODALTUNE_ATTENTION", "quick")
    with pytest.raises(ConfigError, match="unknown attention kernel 'quick'"):
        DilatedConfig()


@pytest.mark.parametrize("kernel", ["cuda_flash", "cuda_efficient"])
def test_a_kernel_that_this_machine_lacks_is_refused(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("MODALTUNE_ATTENTION", kernel)
    with pytest.raises(ConfigError, match=f"'{kernel}' needs a GPU, which this machine lacks; choose from auto, naive"):
        DilatedConfig()


def test_a_gpu_kernel_for_a_model_on_the_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="'cuda_efficient' runs on a GPU only, but the model is on cpu"):
        kernel_for("cuda_efficient", torch.empty(0), masked=False)


def test_a_kernel_that_takes_no_mask_is_refused_for_a_padded_batch() -> None:
    with pytest.raises(ConfigError, match="'flash_attn' takes no padded batch"):
        kernel_for("flash_attn", torch.empty(0), masked=True)


@pytest.mark.parametrize("name", ["auto", "naive"])
def test_the_kernel_is_logged_once_however_it_was_chosen(name: str, caplog: pytest.LogCaptureFixture) -> None:
    _chosen.cache_clear()
    with caplog.at_level("INFO", logger="modaltune"):
        for _ in range(2):
            kernel = kernel_for(name, torch.empty(0), masked=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"attention kernel {kernel.name} for torch.float32 on cpu"
    ]


def test_auto_takes_the_fast_kernel_of_the_device() -> None:
    def chosen(dtype: torch.dtype, device: str, *, masked: bool = False) -> str:
        return kernel_for("auto", torch.empty(0, dtype=dtype, device=device), masked=masked).name

    assert chosen(torch.float32, "cpu") == chosen(torch.bfloat16, "cpu", masked=True) == "cpu_flash"
    assert automatic("cuda", torch.bfloat16, masked=False) == "cuda_flash"
    assert automatic("cuda", torch.bfloat16, masked=True) == automatic("cuda", torch.float32, masked=False)
    assert chosen(torch.float32, "meta") == "naive"

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console

from modaltune.benchmarks.aggregate import bench_aggregate
from modaltune.benchmarks.bags import bench_bags
from modaltune.benchmarks.full import GENES, full_model, gene_indices
from modaltune.benchmarks.memory import in_own_process
from modaltune.benchmarks.parts import bench_genes
from modaltune.benchmarks.reference import index_gather_attention, sequential_step
from modaltune.benchmarks.table import bench_table
from modaltune.benchmarks.wire import bench_wire
from modaltune.data.batch import CaseTensors
from modaltune.encoders.dilated_attention import DilatedConfig, dilated_attention
from modaltune.errors import RunFailed
from modaltune.federation.wire import FORMS, SEALED, pack, seal
from modaltune.models.learner import Learner
from modaltune.models.modaltune import trainable_state
from modaltune.step import accumulate_gradients

D, E, H, T = 768, 192, 64, 64  # model width, bottleneck, gene latent, gene tokens
SETS, MEMBERSHIPS, TASKS, OUTPUT = 331, 9731, 3, 256


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def attention() -> int:
    """Bottleneck down, query E x E, key and value D -> E, their biases, output E x E, bottleneck up."""
    return linear(D, E) + E * E + 2 * D * E + 3 * E + linear(E, E) + linear(E, D)


def full_configuration() -> int:
    norm = 2 * D
    injectors = 3 * (attention() + 2 * norm + D)
    extractors = (3 + 2) * (attention() + 2 * norm + norm + linear(D, E) + linear(E, D))
    self_attention = 2 * (attention() + norm)
    half_sets, half_latent = SETS // 2, H // 2
    mixer = 4 * H + linear(SETS, half_sets) + linear(half_sets, SETS) + linear(H, half_latent) + linear(half_latent, H)
    genes = (MEMBERSHIPS + SETS) * H + 2 * H + linear(H, H) + mixer + 2 * H + linear(H, D) + linear(SETS, T)
    tokens = TASKS * D + D + norm + (1 + T) * D + D + T * D  # tasks, positions, missing slides and expression
    return injectors + extractors + self_attention + genes + tokens + norm + linear(D, OUTPUT)


@pytest.fixture(scope="module")
def wire() -> dict[str, float]:
    return bench_wire()


def test_the_message_of_the_full_configuration_has_the_parameters_counted_by_hand(wire: dict[str, float]) -> None:
    assert wire["parameters"] == full_configuration()


def test_megabytes_are_those_of_the_one_file_that_travels(wire: dict[str, float]) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in trainable_state(full_model(3)).items()}
    for form in FORMS:
        zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        assert wire[f"mb_{form}"] == len(seal(pack(form, zeros))[SEALED]) / 1e6


def test_megabytes_follow_from_the_parameters(wire: dict[str, float]) -> None:
    for form, size in (("fp32", 4), ("fp16", 2), ("int8", 1 + 4 / 512)):
        assert wire[f"mb_{form}"] == pytest.approx(size * wire["parameters"] / 1e6, rel=0.01)
    assert wire["parameters"] <= 10_000_000
    assert wire["mb_fp16"] <= 20
    assert wire["mb_int8"] <= 10.3


def test_results_become_a_table_with_a_line_for_each_measurement() -> None:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(bench_table({"wire": {"parameters": 12}, "step": {"1 task": {"seconds": 0.25}}}))
    shown = capture.get()
    for word in ("wire", "parameters", "12", "step", "1 task", "seconds 0.25"):
        assert word in shown


def test_the_plain_attention_that_benchmarks_compare_with_gives_the_same() -> None:
    config = DilatedConfig(segments=(16, 46, 128), ratios=(1, 2, 4))
    q, k, v = torch.randn(3, 1, 8, 61, 4, generator=torch.Generator().manual_seed(0)).unbind()
    torch.testing.assert_close(index_gather_attention(q, k, v, config), dilated_attention(q, k, v, config))


def test_the_plain_step_that_benchmarks_compare_with_gives_the_same(
    tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    case = next(case for case in tiny_cases if len(case.targets) == 3)
    gradients = []
    for step in (
        lambda: accumulate_gradients(tiny_learner, [case], "contrastive"),
        lambda: sequential_step(tiny_learner, case),
    ):
        tiny_learner.zero_grad(set_to_none=True)
        step()
        gradients.append({name: p.grad for name, p in tiny_learner.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_the_gene_sets_have_the_published_numbers() -> None:
    sizes = sorted(len(members) for members in gene_indices())
    assert (len(sizes), sum(sizes), sizes[0], sizes[SETS // 2], sizes[-1]) == (SETS, MEMBERSHIPS, 1, 8, 199)
    assert {gene for members in gene_indices() for gene in members} == set(range(GENES))


def test_the_batched_gene_encoder_calls_two_orders_fewer_operators() -> None:
    assert bench_genes()["331 sets"]["fewer_operators"] > 100


@pytest.mark.slow
def test_a_site_passes_the_loader_in_less_memory_than_its_bags_hold() -> None:
    found = bench_bags(patches=8_000, rows=1_000, cases=50)
    assert list(found) == ["random rows", "all rows", "50 cases"]
    assert min(found["random rows"].values()) > 0
    assert found["50 cases"]["loaded_mb"] == pytest.approx(50 * 4096 * 1536 * 4 / 1e6)
    assert 0 < found["50 cases"]["peak_mb"] < 1000 < found["50 cases"]["loaded_mb"]


def test_the_benchmark_of_aggregation_reports_ratios_first() -> None:
    found = bench_aggregate(parameters=200_000, sites=(2, 3))
    assert list(found) == ["memory", "2 sites", "3 sites"]
    assert list(found["3 sites"])[:2] == ["memory_ratio", "speedup"]
    assert all(value > 0 for value in found["3 sites"].values())


def test_a_measurement_that_ends_badly_is_one_line() -> None:
    with pytest.raises(RunFailed, match=r"modaltune.benchmarks.step exact many 1 ended with status 1 \(.*\)") as caught:
        in_own_process("modaltune.benchmarks.step", "exact", "many", 1)
    assert "\n" not in str(caught.value)

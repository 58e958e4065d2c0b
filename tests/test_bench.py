from __future__ import annotations

import pytest
from rich.console import Console

from modaltune.bench import bench_table, bench_wire

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


def test_megabytes_follow_from_the_parameters(wire: dict[str, float]) -> None:
    assert wire["mb_fp32"] == pytest.approx(4 * wire["parameters"] / 1e6)


def test_results_become_a_table_with_a_line_for_each_measurement() -> None:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(bench_table({"wire": {"parameters": 12}, "step": {"1 task": {"seconds": 0.25}}}))
    shown = capture.get()
    for word in ("wire", "parameters", "12", "step", "1 task", "seconds 0.25"):
        assert word in shown

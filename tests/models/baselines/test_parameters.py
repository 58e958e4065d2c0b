"""Parameters of every row at the published sizes, counted by hand from the specification of each design.

1,536 features a patch, 4,987 genes, 331 sets with 9,731 memberships; two classes of diagnosis and four time bins.
"""

from __future__ import annotations

import pytest

from modaltune.benchmarks.baselines import COUNTED, bench_baselines, full_baseline
from modaltune.models.modaltune import trainable_state

W, G, P, M = 1536, 4987, 331, 9731
ENCODER = 86_330_880  # Prov-GigaPath's slide encoder, as published


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def heads(width: int) -> int:
    return linear(width, 2) + linear(width, 4)


# embedding, two branches of the gate, score, hidden layer: 393,472 + 131,584 + 257 + 65,792
ABMIL = linear(W, 256) + 2 * linear(256, 256) + linear(256, 1) + linear(256, 256)
# norm, q k v without bias, output, a kernel of 33 for each of 8 heads
TRANSLAYER = 2 * 512 + 3 * 512 * 512 + linear(512, 512) + 8 * 33
# embedding, CLS, two layers, depthwise convolutions with bias, last norm
TRANSMIL = linear(W, 512) + 512 + 2 * TRANSLAYER + 512 * (7 * 7 + 5 * 5 + 3 * 3 + 3) + 2 * 512
# gene to 8 units of each of its sets, 8 to 16 inside a set
SPARSE = 8 * (M + P) + P * linear(8, 16)
# two layers for each set
PATHWAYS = 256 * (M + P) + P * linear(256, 256)
# norms, half as many sets between the sets, half the width between the widths
MIXER = 3 * (4 * 256 + linear(331, 165) + linear(165, 331) + linear(256, 128) + linear(128, 256))
ATTENTION = 4 * linear(256, 256)
# two transformer layers (attention, feed-forward of 512, two norms), gated attention, one layer
STREAM = (
    2 * (ATTENTION + linear(256, 512) + linear(512, 256) + 4 * 256)
    + 2 * linear(256, 256)
    + linear(256, 1)
    + linear(256, 256)
)
GENE_VECTOR = SPARSE + linear(5296, 64) + linear(64, 256)


def fusion(image: int) -> int:
    return GENE_VECTOR + linear(image + 256, 256) + linear(256, 256)


EXPECTED = {
    "abmil": ABMIL + heads(256),
    "transmil": TRANSMIL + heads(512),
    "gigapath_tuned": ENCODER + heads(768),
    "mlp": linear(G, 256) + linear(256, 256) + heads(256),
    "s_mlp": SPARSE + linear(5296, 1324) + heads(1324),
    # pathways, mixer, norm, 256 to 768, 331 sets to 64 tokens, norm
    "gene_mixer": PATHWAYS + MIXER + 2 * 256 + linear(256, 768) + linear(331, 64) + 2 * 768 + heads(768),
    "mcat": linear(W, 256) + PATHWAYS + ATTENTION + 2 * STREAM + linear(512, 256) + linear(256, 256) + heads(256),
    # embedding, pathways, norm, q k v without bias, norm, two layers of 128, norm, 256 to 64
    "survpath": linear(W, 256)
    + PATHWAYS
    + 2 * 256
    + 256 * 3 * 128
    + 2 * 128
    + 2 * linear(128, 128)
    + 2 * 128
    + linear(256, 64)
    + heads(64),
    "abmil_cat": ABMIL + fusion(256) + heads(256),
    "transmil_cat": TRANSMIL + fusion(512) + heads(256),
    "gigapath_cat": ENCODER + fusion(768) + heads(256),
}


@pytest.mark.parametrize("kind", sorted(COUNTED))
def test_a_baseline_has_the_parameters_of_its_design(kind: str) -> None:
    assert sum(value.numel() for value in trainable_state(full_baseline(kind)).values()) == EXPECTED[kind]


def test_the_smallest_rows_written_out() -> None:
    # ABMIL: 393,472 + 2 * 65,792 + 257 + 65,792 = 591,105, and six outputs of 257 numbers each
    assert EXPECTED["abmil"] == 591_105 + 1_542
    # MLP: 4,988 * 256 + 257 * 256 = 1,276,928 + 65,792, and the same heads
    assert EXPECTED["mlp"] == 1_342_720 + 1_542


def test_the_benchmark_counts_every_row_and_what_it_sends() -> None:
    rows = bench_baselines()
    assert list(rows) == list(COUNTED)
    assert {kind: row["parameters"] for kind, row in rows.items()} == EXPECTED
    assert rows["abmil"]["mb_fp16"] == pytest.approx(2 * EXPECTED["abmil"] / 1e6)

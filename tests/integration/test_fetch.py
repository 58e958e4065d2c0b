"""``modaltune-simulate fetch`` as people use it, against a local server, and a federation on what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import simulation.cli
from tests.integration.helpers import Ran
from tests.simulation.fake_tcga import GENES, Fault, breast_cohort, serve

pytestmark = pytest.mark.integration
Command = Callable[..., Ran]


@pytest.mark.slow
def test_a_federation_trains_on_fetched_tables(command: Command, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serve(breast_cohort()) as fake:
        fake.faults["/cases"] = [Fault(status=500)]
        options = ("--cohort", "brca", "--out", data, "--base-gdc", f"{fake.url}/", "--base-xena", fake.url)
        ran = command(simulation.cli.main, "fetch", *options, "--json")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    document = json.loads(ran.out)
    assert document["fetched"] is True
    assert [about["cases"] for about in document["hospitals"].values()] == [30, 15, 14]
    again = command(simulation.cli.main, "fetch", *options)
    assert again.code == 0, again.err
    assert "complete already, verified" in again.err
    assert again.out == ""

    (data / "pathways.gmt").write_text("".join(f"SET{n}\t\t" + "\t".join(GENES[n : n + 8]) + "\n" for n in (0, 8, 16)))
    given = ("--data", data, "--cohort", "BRCA", "--rounds", 1, "--methods", "linear", "--set", "privacy.min_cell=1")
    ran = command(simulation.cli.main, "tcga", *given, "--out", tmp_path / "run", "--json")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["metrics"]
    assert {row["hospital"] for row in rows} >= {"H1", "H2", "H3"}
    assert {row["method"] for row in rows} == {"federated", "linear"}


def test_an_unknown_cohort_or_address_is_one_line(command: Command, tmp_path: Path) -> None:
    ran = command(simulation.cli.main, "fetch", "--cohort", "LUAD", "--out", tmp_path)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "unknown cohort 'LUAD'; choose from BLCA, BRCA" in ran.err
    ran = command(simulation.cli.main, "fetch", "--cohort", "BRCA", "--out", tmp_path, "--base-gdc", "nowhere")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "not a web address" in ran.err
    assert not list(tmp_path.iterdir())

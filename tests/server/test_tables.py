from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from server.report_data import training_rounds
from server.tables import comparison_table, participation_table, ranges, traffic_table
from tests.server.run_folder import METHODS, metrics_rows, round_rows


def text(table: Table, width: int = 200) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def rows_of(*methods: str, seeds: tuple[int, ...] = (0,)) -> list[dict[str, object]]:
    return [row for row in metrics_rows(seeds) if row["method"] in methods]


def test_comparison_shows_value_and_interval_of_each_method() -> None:
    shown = text(comparison_table(rows_of("local", "federated", "pooled")))
    for word in ("Local", "Federated", "Pooled", "diagnosis", "AUC", "C-index", "n = 60", "0.850", "[0.79, 0.89]"):
        assert word in shown


def test_comparison_of_five_methods_fits_into_80_columns() -> None:
    shown = text(comparison_table(rows_of(*METHODS[:5])), width=80)
    assert "…" not in shown
    assert shown.count("[0.79, 0.89]") == 4


def test_comparison_of_many_methods_has_a_line_for_each() -> None:
    shown = text(comparison_table(metrics_rows()), width=80)
    assert "…" not in shown
    assert "abmil/federated" in shown
    assert shown.count("0.850 [0.79, 0.89]") == 4


def test_comparison_averages_seeds_and_says_so() -> None:
    shown = text(comparison_table(rows_of("federated", seeds=(0, 1, 2))))
    assert "mean of 3 seeds" in shown
    assert "0.860" in shown


def test_comparison_shows_undefined_values_and_counts_undefined_seeds() -> None:
    assert "n/a" in text(comparison_table(metrics_rows(), hospital="H3"))
    rows = rows_of("federated", seeds=(0, 1))
    rows[0]["value"] = None
    assert "1 of 2 n/a" in text(comparison_table(rows))


def test_comparison_of_nothing_is_an_empty_table() -> None:
    assert comparison_table([]).row_count == 0


def test_participation_counts_rounds_and_names_reasons() -> None:
    shown = text(participation_table(round_rows(), roster=["H1", "H2", "H3", "H4"]))
    lines = {line.split()[0]: line for line in shown.splitlines() if line.split()}
    assert "4 of 4" in lines["H1"]
    assert "2 of 4" in lines["H3"]
    assert "3: norm above bound" in lines["H3"]
    assert "0 of 4" in lines["H4"]


def test_attempts_that_were_thrown_away_are_no_rounds() -> None:
    rounds = round_rows()
    second = next(row for row in rounds if row["round"] == 2)
    short = second | {"status": "REPEATED", "contributors": ["H1"], "missing": ["H2", "H3"]}
    again = second | {"status": "OK"}  # a restarted coordinator, which had not kept the round
    rounds = [row for line in rounds for row in ((short, line, again) if line is second else (line,))]
    assert [row["status"] for row in training_rounds(rounds)] == ["OK", "OK", "DEGRADED", "OK"]
    lines = {line.split()[0]: line for line in text(participation_table(rounds)).splitlines() if line.split()}
    assert "4 of 4" in lines["H1"]
    assert "4 of 4" in lines["H2"]


def test_traffic_groups_equal_rounds_and_adds_up() -> None:
    shown = text(traffic_table(round_rows()))
    assert "2-3 each" in shown
    total = next(line for line in shown.splitlines() if "total" in line)
    assert total.split() == ["total", "12.0", "10.0", "22.0", "22.0"]


def test_traffic_of_nothing_is_zero() -> None:
    assert "0.000" in text(traffic_table([]))


def test_markup_in_names_is_shown_as_it_is() -> None:
    rounds = json.loads(json.dumps(round_rows()).replace("H3", "[red]H3"))
    assert "[red]H3" in text(participation_table(rounds))


def test_round_numbers_are_shortened_to_ranges() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert ranges([]) == ""

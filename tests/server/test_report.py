from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from modaltune.errors import FederationError
from server.report import write_report
from server.report_calibration import calibration, counted_points
from server.report_context import comparison, further, lead, method_meaning
from server.report_counts import binned_curves, sides_of
from server.report_curves import federated_cases, kaplan_meier, roc_curve, spread, task_curves
from server.report_data import Score, Task, collect, gain, gap_closed, load_run, read_table
from server.report_forest import comparison_table
from server.report_plots import hospital_colours, method_colours
from server.report_rounds import privacy
from tests.server.run_folder import HOSPITALS, METHODS, prediction_rows, write_run

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads, and collects ids, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), summary={"status": "DEGRADED"})


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_report_needs_nothing_from_outside(html: str, page: Page) -> None:
    assert "://" not in html
    assert "<script" not in html
    assert "@import" not in html
    assert all(link.startswith(("#", "data:")) for link in page.links)


def test_report_is_well_formed_and_every_reference_has_a_target(html: str, page: Page) -> None:
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    targets = [link[1:] for link in page.links if link.startswith("#")] + re.findall(r"url\(#([^)]+)\)", html)
    assert set(targets) <= set(page.ids)


def test_every_figure_has_a_text_for_those_who_cannot_see_it(html: str) -> None:
    figures = re.findall(r"<svg[^>]*>", html)
    assert len(figures) == 10
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', figure) for figure in figures)


def test_report_mentions_every_hospital_method_and_task(page: Page) -> None:
    for name in (*HOSPITALS, *METHODS, "diagnosis", "stage", "survival"):
        assert name in page.text


def test_report_says_what_was_found_and_what_it_may_not_be_used_for(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "DEGRADED" in text
    assert "H3 was refused: norm above bound" in text
    assert "closes 75 % of the gap to pooled training" in text
    assert "Research use only" in text
    assert "ab" * 32 in text
    assert "1,234 optimiser steps" in text


def test_the_same_run_folder_always_gives_the_same_page(run: Path, html: str) -> None:
    assert write_report(run).read_text(encoding="utf-8") == html


def test_markup_in_names_and_notes_is_escaped(tmp_path: Path) -> None:
    evil = ("<b>H</b>", 'a"&$x$', "<script>alert(1)</script>")
    said = {"title": "<i>run</i>", "notes": ["<img src=x>"], "versions": {"<u>": "<s>"}, "digest": "<q>"}
    html = write_report(write_run(tmp_path, hospitals=evil, summary=said)).read_text(encoding="utf-8")
    for tag in ("<b>H", "<script", "<i>run", "<img", "<u>", "<s>", "<q>", "x>"):
        assert tag not in html
    assert Page(html).open == []
    assert "<script>alert(1)</script>" in Page(html).text


def test_without_single_cases_the_report_says_why_figures_are_absent(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    rows = [row for row in json.loads((run / "metrics.json").read_text()) if row["method"] in ("local", "federated")]
    (run / "metrics.json").write_text(json.dumps(rows))
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count("They never leave a hospital in a real federation") == 4
    assert len(re.findall("<svg", html)) == 5
    assert "Gap closed" not in html


def test_a_failed_run_still_gets_a_report_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"name": "s", "roster": ["H1"], "tasks": []}))
    said = {"title": "t", "status": "FAILED", "notes": ["Only 1 of 5 hospitals answered."]}
    (tmp_path / "summary.json").write_text(json.dumps(said))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "FAILED" in text
    assert "without a model that could be scored. Only 1 of 5 hospitals answered." in text


def test_the_error_of_a_value_from_counts_stands_beside_it_and_is_not_rounded_down(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    rows = json.loads((run / "metrics.json").read_text())
    for row in rows:
        if (row["method"], row["metric"], row["hospital"]) == ("federated", "auc", "all"):
            row.update(metric="auc_binned", error=0.0121 if row["task"] == "stage" else 0.0)
    (run / "metrics.json").write_text(json.dumps(rows))
    html = write_report(run).read_text(encoding="utf-8")
    assert "<b>0.85</b> ± 0.013" in html
    assert html.count("<b>0.85</b> ±") == 1
    assert "how far a value from counts can be" in html


def test_curves_from_counts_need_no_single_case(tmp_path: Path) -> None:
    """Half of the cases at 0.95 and a tenth of those at 0.25 are of the class, in steps of a tenth."""
    run = write_run(tmp_path, cases=False)
    others, own = np.zeros((2, 10), int)
    others[[2, 9]], own[[2, 9]] = (36, 20), (4, 20)
    told = {"stage": {"hospitals": ["H1", "H2"], "counts": [[others.tolist(), own.tolist()]]}}
    (run / "counts.json").write_text(json.dumps(told))
    data = load_run(run)
    stage = next(task for task in data.tasks if task.name == "stage")
    sides = sides_of(data, stage)
    assert sides is not None
    ((false, true),) = binned_curves(sides)
    scores = np.repeat([0.25, 0.25, 0.95, 0.95], [36, 4, 20, 20])
    labels = np.repeat([False, True, False, True], [36, 4, 20, 20])
    assert np.trapezoid(true, false) == pytest.approx(roc_auc_score(labels, scores))
    points, what = counted_points(sides, stage)
    assert [(round(p[0], 3), p[1], p[4]) for p in points] == [(0.25, 0.1, 40), (0.95, 0.5, 40)]
    assert what == "Share of III"
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count("They never leave a hospital") + html.count("and the run folder has none") == 2
    assert Page(html).open == []
    assert "counts.json" in html


def gene_set_rows() -> pd.DataFrame:
    """Contributions of 15 sets to two labels of the diagnosis, over 40 of 50 cases."""
    rows = [
        {"task": "diagnosis", "towards": label, "unit": "percentage points", "group": group, "cases": cases}
        | {"gene_set": f"SET_<{number}>", "mean": number - 7.0, "low": number - 8.0, "high": number - 6.0}
        | {"mean_size": abs(number - 7.0), "of": 50, "seed": 0}
        for label in ("ductal", "lobular")
        for group, cases in (("all", 40), (f"predicted {label}", 25), ("predicted otherwise", 15))
        for number in range(15)
    ]
    return pd.DataFrame(rows)


def test_contributions_of_gene_sets_are_shown_with_the_sample_they_rest_on(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    rows = gene_set_rows()
    pd.concat([rows, rows.assign(seed=1, mean=99.0)]).to_parquet(run / "gene_sets.parquet")
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert "#gene-sets" in page.links
    text = " ".join(page.text.split())
    assert "40 test cases, drawn from the 50 of all hospitals that have expression" in text
    assert "right speaks for lobular" in text
    assert "predicted otherwise, n = 15" in text
    assert "SET_<0>" in text
    assert "SET_<7>" not in text, "the three with the smallest contributions are left out"
    assert html.count("Contributions of gene sets to diagnosis") == 2
    assert "+99" not in html, "the first seed is shown, as with the other figures of single cases"


def test_a_run_without_contributions_has_no_section_for_them(page: Page) -> None:
    assert "#gene-sets" not in page.links
    assert "gene-sets" not in page.ids


def test_several_seeds_are_averaged_and_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path, seeds=(0, 1, 2), cases=False)
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "Values of every seed" in text
    assert "Seed 2" in text
    assert "mean over 3 seeds" in text
    cells = {cell["method"]: cell for cell in comparison(load_run(run))["rows"][0]["cells"]}
    assert cells["federated"]["value"] == "0.86"
    assert cells["federated"]["interval"] == "0.80 to 0.90"


def test_the_report_says_what_left_how_often_and_what_protected_it(run: Path, page: Page) -> None:
    text = " ".join(page.text.split())
    left = privacy(load_run(run))
    assert [row["messages"] for row in left["rows"]] == ["3", "11"]  # a refused reply has left too, a missing one not
    assert "a parameter is averaged only when at least 2 hospitals trained it" in text
    assert "No sums, or not all, because absent or too few, of expression from H3." in text
    assert "Secure aggregation and added noise: none" in text


def test_every_answer_to_a_phase_with_several_questions_has_left(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    row = {
        "round": 2,
        "phase": "probe",
        "status": "DEGRADED",
        "contributors": ["H1", "H2"],
        "missing": [],
        "bytes_up": 9,
    }
    row |= {"replies": {"H1": ["a", "b", "c"], "H2": ["d", "e", "f"], "H3": ["g"]}, "refused": {"H3": "", "H4": ""}}
    with (run / "rounds.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
    assert privacy(load_run(run))["rows"][-1]["messages"] == "8"  # of H4 one that was refused unread


@pytest.mark.parametrize("by_label", [False, True])
def test_label_queries_asked_after_the_end_have_left_too(tmp_path: Path, by_label: bool) -> None:
    run = write_run(tmp_path, cases=False)
    study = json.loads((run / "study.json").read_text()) | {"label_queries": {"budget": 2, "by_label": by_label}}
    (run / "study.json").write_text(json.dumps(study))
    for name, sites in (("necrosis-1", HOSPITALS), ("necrosis-2", HOSPITALS[:1])):
        row = {"round": 4, "phase": "label-query", "contributors": list(sites), "refused": {}, "bytes_up": 500}
        (run / "queries" / name).mkdir(parents=True)
        (run / "queries" / name / "rounds.jsonl").write_text(json.dumps(row) + "\n")
    data = load_run(run)
    (asked,) = (row for row in privacy(data)["rows"] if "question that nobody labelled" in row["what"])
    assert (asked["messages"], asked["bytes"]) == (str(len(HOSPITALS) + 1), "1.0 kB")
    assert ("by label of the study's tasks" in asked["what"]) == by_label
    assert all(row["phase"] != "label-query" for row in data.rounds), "they are no part of the training"


def test_a_run_without_protection_is_not_called_protected(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    study = json.loads((run / "study.json").read_text()) | {"privacy": {"min_cell": 1, "min_contributors": 1}}
    (run / "study.json").write_text(json.dumps(study))
    text = " ".join(Page(write_report(run).read_text(encoding="utf-8")).text.split())
    assert "Least contributors: none." in text
    assert "Small counts: not held back." in text


def test_methods_are_compared_on_the_same_patients_with_interval_and_p(run: Path) -> None:
    rows = comparison_table(load_run(run))
    assert {row["method"] for row in rows} == set(METHODS) - {"federated"}
    first = rows[0]
    assert (first["task"], first["method"]) == ("diagnosis", "local")
    assert (first["difference"], first["interval"], first["p"]) == ("+0.15", "+0.05 to +0.25", "< 0.01")
    assert first["apart"]
    assert not rows[1]["apart"]
    text = write_report(run).read_text(encoding="utf-8")
    assert '<td class="num"><b>+0.15</b></td>' in text
    assert '<td class="num">−0.05</td>' in text


def test_every_hospital_has_a_section_that_the_tables_lead_to(html: str, page: Page) -> None:
    for index, name in enumerate(HOSPITALS, start=1):
        assert f'href="#hospital-{index}">{name}</a>' in html
    text = " ".join(page.text.split())
    assert "It took part in 4 of 4 rounds." in text
    assert "It took part in 2 of 4 rounds." in text


def test_risk_groups_are_cut_where_training_cases_say_so(run: Path, tmp_path: Path) -> None:
    shown = kaplan_meier(load_run(run), "survival")
    assert "of 3 groups" in str(shown.svg)
    uncut = write_run(tmp_path, summary={"risk_cuts": {}})
    assert "does not say where the risks of training cases part" in kaplan_meier(load_run(uncut), "survival").missing
    far = write_run(tmp_path, summary={"risk_cuts": {"survival": [99.0]}})
    assert "All test cases fall into one group" in kaplan_meier(load_run(far), "survival").missing


def test_pictures_of_cases_are_of_the_seed_that_was_given_first(run: Path, tmp_path: Path) -> None:
    """Cuts of risk, bins and model are its own; the other seed has split the patients otherwise."""
    both = write_run(tmp_path)
    cases = prediction_rows(seeds=(0,))
    other = prediction_rows(seeds=(1, 2)).query("seed == 2").assign(seed=-1)
    pd.concat([other, cases]).to_parquet(both / "predictions.parquet")
    for draw in (lambda at: kaplan_meier(load_run(at), "survival"), lambda at: calibration(load_run(at))):
        assert draw(both) == draw(run)
    first = federated_cases(load_run(both), pd.concat([other, cases]), "survival")
    assert set(first["seed"]) == {0}


def test_further_metrics_stay_out_of_the_tables_that_everybody_reads(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    rows = json.loads((run / "metrics.json").read_text())
    rows += [row | {"metric": "brier", "value": 0.123} for row in rows if row["metric"] == "auc"]
    (run / "metrics.json").write_text(json.dumps(rows))
    data = load_run(run)
    assert all(row["metric"] != "Brier score" for row in comparison(data)["rows"])
    assert [row["metric"] for row in further(data)["rows"]] == ["Brier score", "Brier score"]


def test_undefined_values_show_as_not_available(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    rows = json.loads((run / "metrics.json").read_text())
    for row in rows:
        row.update(value=None, low=None, high=None)
    (run / "metrics.json").write_text(json.dumps(rows))
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "n/a" in text
    assert "nan" not in text.lower()


def test_a_folder_without_a_run_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"not a run folder.*Give the folder"):
        write_report(tmp_path)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    (run / "metrics.json").write_text("[{")
    with pytest.raises(FederationError, match=r"metrics\.json: not valid JSON"):
        write_report(run)


def test_half_a_last_line_of_the_round_log_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    log = run / "rounds.jsonl"
    log.write_text(log.read_text() + '{"round": 5, "pha')
    assert [row["round"] for row in load_run(run).training] == [1, 2, 3, 4]


def test_a_round_repeated_after_a_restart_counts_once_in_the_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    log = run / "rounds.jsonl"
    log.write_text(log.read_text() + json.dumps({"round": 4, "phase": "train", "loss": 0.5}) + "\n")
    training = load_run(run).training
    assert len(training) == 4
    assert training[-1]["loss"] == 0.5


def scored(metric: str, **values: float | None) -> dict[str, Score]:
    base = {"task": "t", "metric": metric, "hospital": "all", "n": 9, "seed": 0}
    scores = collect([base | {"method": name, "value": value} for name, value in values.items()])
    return {key.method: score for key, score in scores.items()}


def test_share_of_the_gap_closed_is_the_way_gone_from_local_to_pooled() -> None:
    assert gap_closed("auc", scored("auc", local=0.6, federated=0.75, pooled=0.8)) == pytest.approx(0.75)
    assert gap_closed("loss", scored("loss", local=0.8, federated=0.65, pooled=0.6)) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "values",
    [
        {"local": 0.8, "federated": 0.8, "pooled": 0.801},
        {"local": 0.8, "federated": 0.9, "pooled": 0.7},
        {"local": None, "federated": 0.9, "pooled": 0.7},
        {"federated": 0.9, "pooled": 0.7},
    ],
)
def test_share_of_the_gap_is_undefined_without_a_gap(values: dict[str, float | None]) -> None:
    assert gap_closed("auc", scored("auc", **values)) is None


def test_gain_is_positive_when_the_second_score_is_better() -> None:
    scores = scored("auc", first=0.6, second=0.7)
    assert gain("auc", scores["first"], scores["second"]) == pytest.approx(0.1)
    assert gain("loss", scores["first"], scores["second"]) == pytest.approx(-0.1)


def test_undefined_seeds_do_not_enter_the_mean() -> None:
    row = {"method": "federated", "task": "t", "metric": "auc", "hospital": "all", "n": 9}
    rows = [row | {"seed": 0, "value": 0.5}, row | {"seed": 1, "value": None}, row | {"seed": 2, "value": 0.7}]
    (score,) = collect(rows).values()
    assert score.value == pytest.approx(0.6)
    assert len(score.seeds) == 3


def test_summary_names_tasks_where_federated_training_does_not_help(tmp_path: Path) -> None:
    run = write_run(tmp_path, cases=False)
    rows = json.loads((run / "metrics.json").read_text())
    for row in rows:
        if row["task"] == "stage" and row["method"] == "federated":
            row["value"] = 0.6
    (run / "metrics.json").write_text(json.dumps(rows))
    assert "Federated training was not better than local training for stage." in lead(load_run(run))


def test_every_method_has_its_own_colour_and_no_hospital_has_it_too() -> None:
    colours = method_colours(METHODS)
    assert len(set(colours.values())) == len(METHODS)
    assert colours["federated"] == method_colours(["federated"])["federated"]
    assert not set(hospital_colours(HOSPITALS).values()) & {colours[name] for name in ("local", "federated", "pooled")}


def test_unknown_methods_are_explained_as_baselines() -> None:
    assert method_meaning("abmil/pooled") == "baseline abmil, all cases in one place"
    assert method_meaning("transmil") == "baseline transmil"


@pytest.mark.parametrize("levels", [3, 1000])
def test_area_under_the_roc_curve_equals_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(80) < 0.4
    score = np.round((rng.random(80) + positive) * levels) / levels
    false, true = roc_curve(positive, score)
    assert np.trapezoid(true, false) == pytest.approx(roc_auc_score(positive, score))


def test_roc_curves_and_the_metrics_of_a_run_agree() -> None:
    table = prediction_rows()
    stage = Task(name="stage", kind="ordinal", candidates=("I", "II", "III"), positive=("III",))
    rows = table[(table["task"] == "stage") & (table["method"] == "federated")]
    scores = [row[2] for row in rows["probabilities"]]
    _, area = task_curves(table, stage)["federated"]
    assert area == pytest.approx(roc_auc_score(rows["label"] == "III", scores))


def test_labels_of_curves_are_moved_apart_and_keep_their_order() -> None:
    placed = spread([0.5, 0.1, 0.11], 0.05)
    assert placed == pytest.approx([0.5, 0.1, 0.15])


@pytest.mark.parametrize("name", ["predictions.parquet", "embeddings.parquet"])
@pytest.mark.parametrize("kept", [0, 40])
def test_a_damaged_table_is_named(name: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / name
    pd.DataFrame({"risk": [1.0, 2.0]}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FederationError, match=f"{name}: not a complete parquet file; restore it"):
        read_table(path)

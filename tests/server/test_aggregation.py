from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from modaltune.errors import ConfigError, FederationError
from modaltune.federation.average import State, Update, keywise_average, squared_changes
from modaltune.federation.settings import AggregationSpec
from modaltune.federation.study import Study
from server.aggregation import Gathering, ServerOptimiser, check_rule

SITES = ("A", "B", "C", "D", "E")
KEYS = {"gene_encoder": (2, 3), "task": (4,), "scale": ()}


def a_state(seed: int, size: float = 1.0) -> State:
    draw = np.random.default_rng(seed)
    return {key: np.asarray(size * draw.normal(size=shape), dtype=np.float32) for key, shape in KEYS.items()}


def an_update(seed: int, size: float = 1.0, **examples: int) -> Update:
    return Update(arrays=a_state(seed, size), examples={key: examples.get(key, 5) for key in KEYS})


@pytest.fixture
def updates() -> dict[str, Update]:
    made = {site: an_update(seed, task=seed) for seed, site in enumerate(SITES, start=1)}
    return made | {"C": an_update(3, gene_encoder=0)}


def with_spec(study: Study, **changes: Any) -> Study:
    return study.model_copy(update={"aggregation": AggregationSpec(**changes)})


def gather(study: Study, updates: dict[str, Update], order: Sequence[str], folder: Path, **more: Any) -> Gathering:
    gathering = Gathering(study, a_state(0), SITES, more.get("usual"), folder)
    for site in order:
        gathering.accept(site, updates[site]) if site in updates else gathering.give_up(site)
    return gathering


def same(a: State, b: State) -> bool:
    return set(a) == set(b) and all(np.array_equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_an_update_that_the_disk_does_not_take_is_not_counted(
    rule: str, updates: dict[str, Update], tiny_study: Study, tmp_path: Path
) -> None:
    study = with_spec(tiny_study, rule=rule)
    gathering = gather(study, {"C": updates["C"]}, ["C"], tmp_path / "spool")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            gathering.accept("B", updates["B"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for site in ("A", "D", "E"):
        gathering.accept(site, updates[site])
    gathering.give_up("B")
    assert set(gathering.examples) == set(gathering.report()) == set(updates) - {"B"}
    others = {site: update for site, update in updates.items() if site != "B"}
    assert same(gathering.finish(), gather(study, others, SITES, tmp_path / "others").finish())


@given(order=st.permutations(SITES), silent=st.sampled_from(SITES), told=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_mean_of_replies_in_any_order_has_the_bits_of_the_mean_in_order_of_names(
    order: list[str], silent: str, told: bool, tiny_study: Study, tmp_path_factory: pytest.TempPathFactory
) -> None:
    answered = {site: an_update(ord(site), task=ord(site) - 64) for site in SITES if site != silent}
    folder = tmp_path_factory.mktemp("round") / "spool"
    found = gather(tiny_study, answered, [site for site in order if told or site != silent], folder).finish()
    assert same(found, keywise_average(answered, a_state(0)))
    assert not folder.exists()


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_robust_rules_count_each_contributor_of_a_parameter_once(
    rule: str, updates: dict[str, Update], tiny_study: Study, tmp_path: Path
) -> None:
    found = gather(with_spec(tiny_study, rule=rule, trim=0.25), updates, SITES[::-1], tmp_path / "spool").finish()
    for key in KEYS:
        stacked = np.stack([updates[site].arrays[key] for site in SITES if updates[site].examples[key] > 0])
        ordered = np.sort(stacked, axis=0)
        expected = np.median(stacked, axis=0) if rule == "median" else ordered[1:-1].mean(axis=0)
        np.testing.assert_allclose(found[key], expected, rtol=1e-6)
    assert len([site for site in SITES if updates[site].examples["gene_encoder"] > 0]) == 4


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_one_hostile_site_hardly_moves_a_robust_rule(rule: str, tiny_study: Study, tmp_path: Path) -> None:
    honest = {
        site: Update(arrays=a_state(0, 1 + 0.01 * n), examples=dict.fromkeys(KEYS, 5)) for n, site in enumerate("ABCD")
    }
    hostile = Update(arrays=a_state(9, 1e3), examples=dict.fromkeys(KEYS, 10**6))
    study = with_spec(tiny_study, rule=rule, trim=0.25, hostile=1, outlier=0)
    found = gather(study, honest | {"E": hostile}, SITES, tmp_path / "spool").finish()
    mean = keywise_average(honest | {"E": hostile}, a_state(0))
    for key in KEYS:
        np.testing.assert_allclose(found[key], a_state(0)[key], atol=0.05 * np.abs(a_state(0)[key]).max())
        assert np.abs(mean[key] - a_state(0)[key]).max() > 10


@pytest.mark.parametrize("sites", ["ABC", "ABCD"])
def test_a_trimmed_mean_of_few_sites_leaves_out_one_at_each_end(sites: str, tiny_study: Study, tmp_path: Path) -> None:
    updates = {site: an_update(seed) for seed, site in enumerate(sites, start=1)}
    study = with_spec(tiny_study, rule="trimmed_mean", outlier=0)
    assert int(study.aggregation.trim * len(sites)) == 0
    found = gather(study, updates, sites, tmp_path / "spool").finish()
    for key in KEYS:
        ordered = np.sort(np.stack([updates[site].arrays[key] for site in sites]), axis=0)
        np.testing.assert_allclose(found[key], ordered[1:-1].mean(axis=0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("hostile", "sites"), [(0, 9), (1, 4), (2, 6)])
def test_krum_needs_hostile_sites_and_enough_others(hostile: int, sites: int, tiny_study: Study) -> None:
    roster = tuple(f"H{number}" for number in range(sites))
    study = with_spec(tiny_study.model_copy(update={"roster": roster}), rule="krum", hostile=hostile)
    with pytest.raises(ConfigError, match=rf"found hostile = {hostile} and {sites} sites"):
        check_rule(study)
    check_rule(with_spec(study, rule="median", hostile=hostile))
    check_rule(with_spec(study.model_copy(update={"roster": tuple("ABCDE")}), rule="krum", hostile=1))


def test_krum_believes_no_number_of_cases(tiny_study: Study, tmp_path: Path) -> None:
    study = with_spec(tiny_study, rule="krum", hostile=1, outlier=0)
    near = {
        site: Update(arrays=a_state(0, 1 + 0.01 * n), examples=dict.fromkeys(KEYS, 5)) for n, site in enumerate("ABCD")
    }
    found = [
        gather(study, near | {"E": an_update(9, size=50.0)} | {"B": replace(near["B"], examples=claims)}, SITES, folder)
        for claims, folder in ((dict.fromkeys(KEYS, 5), tmp_path / "a"), (dict.fromkeys(KEYS, 10**7), tmp_path / "b"))
    ]
    assert same(found[0].finish(), found[1].finish())


def test_krum_refuses_a_site_that_trains_other_parameters_than_most(
    updates: dict[str, Update], tiny_study: Study, tmp_path: Path
) -> None:
    gathering = gather(with_spec(tiny_study, rule="krum", outlier=0), updates, SITES, tmp_path / "spool")
    assert [refused.site for refused in gathering.outliers()] == ["C"]
    assert set(gathering.examples) == {"A", "B", "D", "E"}


def test_krum_is_refused_when_no_majority_trains_the_same_parameters(tiny_study: Study, tmp_path: Path) -> None:
    updates = {"A": an_update(1), "B": an_update(2, task=0), "C": an_update(3, scale=0)}
    gathering = gather(with_spec(tiny_study, rule="krum", outlier=0), updates, "ABC", tmp_path / "spool")
    with pytest.raises(FederationError, match=r"train different parameters; use 'median' or 'trimmed_mean'"):
        gathering.outliers()


def test_an_update_far_longer_than_the_last_rounds_median_is_shortened(tiny_study: Study, tmp_path: Path) -> None:
    long = an_update(1, size=100.0)
    gathering = gather(with_spec(tiny_study, clip=3.0), {"A": long}, ["A"], tmp_path / "spool", usual=2.0)
    kept = gathering.influence["A"].kept
    assert kept == pytest.approx(3 * 2 / sum(squared_changes(long, a_state(0)).values()) ** 0.5)
    assert gathering.usual_length == pytest.approx(6.0)
    moved = Update(arrays=gathering.finish(), examples=long.examples)
    assert sum(squared_changes(moved, a_state(0)).values()) == pytest.approx(36.0, rel=1e-5)


def test_an_outlier_is_refused_where_the_round_waits_on_disk(tiny_study: Study, tmp_path: Path) -> None:
    updates = {site: an_update(seed) for seed, site in enumerate("ABCD", start=1)} | {"E": an_update(5, size=1e3)}
    gathering = gather(with_spec(tiny_study, rule="median", outlier=20), updates, SITES, tmp_path / "spool")
    assert [(refused.site, refused.reason) for refused in gathering.outliers()] == [
        ("E", "its change is more than 20 times the median")
    ]
    without = {site: update for site, update in updates.items() if site != "E"}
    expected = gather(with_spec(tiny_study, rule="median"), without, "ABCD", tmp_path / "other").finish()
    assert same(gathering.finish(), expected)


def moved(by: dict[str, State]) -> dict[str, Update]:
    return {
        site: Update(
            arrays={key: np.asarray(old + change[key]) for key, old in a_state(0).items()},
            examples=dict.fromkeys(KEYS, 5),
        )
        for site, change in by.items()
    }


def apart(size: float, *, row: int) -> State:
    change = {key: np.zeros(shape, dtype=np.float32) for key, shape in KEYS.items()}
    change["task"][row] = size
    return change


def test_extrapolation_gives_back_what_a_mean_takes_from_updates_that_have_nothing_in_common(
    tiny_study: Study, tmp_path: Path
) -> None:
    updates = moved({site: apart(1.0, row=row) for row, site in enumerate("ABCD")})
    mean = gather(tiny_study, updates, SITES, tmp_path / "mean").finish()
    np.testing.assert_allclose(mean["task"] - a_state(0)["task"], 1 / 4, rtol=1e-5)
    longer = gather(with_spec(tiny_study, extrapolate=True), updates, SITES[::-1], tmp_path / "longer").finish()
    np.testing.assert_allclose(longer["task"] - a_state(0)["task"], 1 / 2, rtol=1e-5)


def test_extrapolation_leaves_the_mean_of_updates_that_agree(tiny_study: Study, tmp_path: Path) -> None:
    updates = moved(dict.fromkeys("ABCD", apart(1.0, row=0)))
    longer = gather(with_spec(tiny_study, extrapolate=True), updates, SITES, tmp_path / "longer").finish()
    assert same(longer, gather(tiny_study, updates, SITES, tmp_path / "mean").finish())


def test_two_sites_that_cancel_each_other_do_not_throw_the_others_far(tiny_study: Study, tmp_path: Path) -> None:
    hostile = {"A": apart(1e4, row=0), "B": apart(-1e4, row=0)}
    updates = moved(hostile | dict.fromkeys("CDE", apart(1.0, row=1)))
    longer = gather(with_spec(tiny_study, extrapolate=True), updates, SITES, tmp_path / "longer").finish()
    assert longer["task"][1] - a_state(0)["task"][1] == pytest.approx(5 / 2 * 3 / 5, rel=1e-5)


def test_extrapolation_does_not_move_what_nobody_trained(tiny_study: Study, tmp_path: Path) -> None:
    updates = {site: replace(an_update(n), examples={"task": 5, "scale": 0}) for n, site in enumerate("ABC", start=1)}
    longer = gather(with_spec(tiny_study, extrapolate=True), updates, SITES, tmp_path / "longer").finish()
    assert {key for key in KEYS if np.array_equal(longer[key], a_state(0)[key])} == {"scale", "gene_encoder"}


def test_the_influence_report_shares_out_all_movement(
    updates: dict[str, Update], tiny_study: Study, tmp_path: Path
) -> None:
    report = gather(tiny_study, updates, SITES, tmp_path / "spool").report()
    assert list(report) == list(SITES)
    assert sum(row["share"] for row in report.values()) == pytest.approx(1, abs=1e-4)
    assert all(row["kept"] == 1 for row in report.values())


@pytest.mark.parametrize("optimiser", ["adam", "yogi"])
def test_a_server_optimiser_goes_on_from_its_moments(optimiser: Any) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, 0
    spec = AggregationSpec(optimiser=optimiser, learning_rate=0.1)
    first = ServerOptimiser(spec)
    before = first.step(1, a_state(0), a_state(1))
    moments = dict(first.moments)
    weights = first.step(2, before, a_state(2))
    again = ServerOptimiser(spec, moments).step(2, before, a_state(2))
    assert same(again, weights)
    fresh = ServerOptimiser(spec).step(2, before, a_state(2))
    assert not same(fresh, weights)


def test_a_server_optimiser_moves_towards_the_target_and_leaves_unmoved_parameters() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, 0
    old, target = a_state(0), a_state(1) | {"scale": a_state(0)["scale"]}
    new = ServerOptimiser(AggregationSpec(optimiser="adam")).step(1, old, target)
    assert np.array_equal(new["scale"], old["scale"])
    assert np.array_equal(np.sign(new["task"] - old["task"]), np.sign(target["task"] - old["task"]))

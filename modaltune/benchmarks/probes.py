"""Probes over sites against scikit-learn and lifelines on the pooled cases, and what they cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.probes.fit import PENALIZER, C, ProbeSpec, fit_sites, hazard_ratios
from modaltune.evaluation.probes.sums import SiteCases, Sums
from modaltune.seeds import numpy_generator

WIDTH, SITES, CASES = 64, 5, 500
GROWTH: tuple[dict[str, int], ...] = (
    {"width": 16},
    {},
    {"width": 256},
    {"sites": 2},
    {"sites": 20},
    {"cases": 2000},
    {"cases": 8000},
)
_TIGHT = {"precision": 1e-16, "r_precision": 0.0}  # of lifelines, which else stops six digits early


def bench_probes(partitions: int = 50, growth: Sequence[dict[str, int]] = GROWTH) -> dict[str, dict[str, float]]:
    """Largest difference of any coefficient over random partitions; bytes, questions and seconds as a problem grows.

    scikit-learn fits by Cholesky-Newton, which is exact, and by L-BFGS, its default, at its smallest tolerance.
    """
    worst = {"scikit-learn": 0.0, "scikit-learn lbfgs": 0.0, "lifelines": 0.0}
    for number in range(partitions):
        generator = numpy_generator(number, "bench-probes")
        sites = random_sites(generator, classes=int(generator.integers(2, 5)), survival=False)
        fitted = fit_sites(logistic_spec(sites), sites).optimum.coefficients
        for name, solver in (("scikit-learn", "newton-cholesky"), ("scikit-learn lbfgs", "lbfgs")):
            worst[name] = max(worst[name], float(np.abs(fitted - pooled_logistic(sites, C, solver)).max()))
        sites = random_sites(generator, classes=2, survival=True)
        probe = fit_sites(ProbeSpec(kind="cox", ridge=PENALIZER), sites)
        difference = np.abs(hazard_ratios(probe) - pooled_cox(sites, PENALIZER)).max()
        worst["lifelines"] = max(worst["lifelines"], float(difference))
    out: dict[str, dict[str, float]] = {
        f"difference to {name}": {"largest": value, "partitions": partitions} for name, value in worst.items()
    }
    for grown in growth:
        size = {"width": WIDTH, "sites": SITES, "cases": CASES} | grown
        for kind in ("logistic", "cox"):
            out[f"{kind}, " + ", ".join(f"{value} {name}" for name, value in size.items())] = _cost(kind, **size)
    return out


def random_sites(
    generator: np.random.Generator,
    *,
    classes: int,
    survival: bool,
    width: int | None = None,
    sites: int | None = None,
    cases: int | None = None,
) -> dict[str, SiteCases]:
    """Random cases dealt out unevenly; one site has a single group, one a single case, one nothing.

    Follow-up is in whole months, so that deaths are tied.
    """
    width = width or int(generator.integers(1, 9))
    count = sites or int(generator.integers(1, 6))
    cases = cases or int(generator.integers(60, 240))
    features = generator.normal(generator.normal(0, 5, width), generator.uniform(0.1, 10, width), (cases, width))
    signal = (features - features.mean(axis=0)) / features.std(axis=0) / width**0.5
    owner = generator.choice(count, size=cases, p=generator.dirichlet(np.ones(count)))
    months = None
    if survival:
        death = generator.exponential(24 * np.exp(-signal @ generator.normal(size=width)))
        censoring = generator.exponential(30, cases)
        group = (death <= censoring).astype(np.int64)
        months = np.ceil(np.minimum(death, censoring))
    else:
        scores = signal @ generator.normal(0, 2, (width, classes)) + generator.gumbel(size=(cases, classes))
        group = scores.argmax(axis=1).astype(np.int64)
    owner[(owner == 0) & (group != 0)] = count  # the first site keeps one group only
    owner[generator.integers(cases)] = count + 1
    parts = {f"H{site}": owner == site for site in range(count + 3)}
    return {
        name: SiteCases(features=features[own], group=group[own], months=None if months is None else months[own])
        for name, own in parts.items()
    }


def logistic_spec(sites: Mapping[str, SiteCases], ridge: float = C) -> ProbeSpec:
    """A logistic probe of all classes that some site has."""
    return ProbeSpec(kind="logistic", groups=1 + max(int(s.group.max(initial=0)) for s in sites.values()), ridge=ridge)


def pooled_logistic(sites: Mapping[str, SiteCases], ridge: float, solver: str = "newton-cholesky") -> Floats:
    """scikit-learn's coefficients on all cases, standardised; the intercept is the last column."""
    everybody = SiteCases.together(list(sites.values()))
    model = LogisticRegression(C=ridge, solver=solver, tol=1e-12, max_iter=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # L-BFGS cannot reach this tolerance and says so
        model.fit(StandardScaler().fit_transform(everybody.features), everybody.group)
    return np.hstack([model.coef_, model.intercept_[:, None]])


def pooled_cox(sites: Mapping[str, SiteCases], penalizer: float) -> Floats:
    """Coefficients of lifelines on all cases, one stratum a site."""
    everybody = SiteCases.together(list(sites.values()))
    frame = pd.DataFrame(everybody.features).rename(columns="f{}".format)
    frame["months"], frame["event"] = everybody.months, everybody.group
    frame["site"] = np.repeat(list(sites), [len(cases.group) for cases in sites.values()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CoxPHFitter(penalizer=penalizer).fit(frame, "months", "event", strata=["site"], fit_options=_TIGHT)
    found: Floats = model.params_.to_numpy()
    return found


def _cost(kind: str, *, width: int, sites: int, cases: int) -> dict[str, float]:
    survival = kind == "cox"
    generator = numpy_generator(0, "bench-probes-cost")
    held = random_sites(generator, classes=3, survival=survival, width=width, sites=sites, cases=cases)
    spec = ProbeSpec(kind="cox", ridge=PENALIZER) if survival else logistic_spec(held)
    started = time.process_time()
    probe = fit_sites(spec, held)
    seconds = time.process_time() - started
    size = probe.optimum.coefficients.size
    answer = Sums(loss=0.0, gradient=np.zeros(size), hessian=np.zeros((size, size))).packed()
    up, down = sum(array.nbytes for array in answer.values()), 8 * (size + 2 * width)
    asked = len(held) - len(probe.left_out)
    return {
        "questions": probe.questions,
        "kB_up_each": up / 1e3,
        "kB_down_each": down / 1e3,
        "sites_asked": asked,
        "MB_in_all": asked * probe.questions * (up + down) / 1e6,
        "cpu_seconds": seconds,
    }

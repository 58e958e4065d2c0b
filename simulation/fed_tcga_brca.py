"""Fed-TCGA-BRCA: a linear Cox model over six regional centres, exact or trained by rounds of averaging.

39 clinical covariates, as FLamby published them. Every method sees the same rows: within each centre and outcome a
quarter is test, a tenth chooses the settings, then the model is fitted once more on all rows that are not test.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter
from numpy.typing import NDArray

from modaltune.errors import DataError
from modaltune.evaluation.metrics import Floats, bootstrap_weights, c_index, summarise
from modaltune.evaluation.predictions import row
from modaltune.evaluation.probes.fit import ProbeSpec, fit_sites, hazard_ratios
from modaltune.evaluation.probes.sums import SiteCases, pool_tallies, site_tally
from simulation.federated_cox import RECIPES, Recipe, trained_by_rounds
from simulation.sites import draw_split

FILE, COVARIATES = "fed_tcga_brca.parquet", 39
ROUNDS = (5, 10, 20, 50)
PENALIZERS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_OTHER = ("case_id", "tss", "E", "T", "fold", "centre")
_DAYS_A_MONTH = 365.25 / 12

Setting = Mapping[str, Any]
Fit = Callable[[Mapping[str, SiteCases], Setting], Iterator[tuple[Setting, Floats]]]
"""Cases by centre -> log hazard ratios ``[F]`` per unit of a covariate, for a setting or for each on the way to it."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of all centres: covariates ``[n, F]``, and ``[n]`` months, event, centre, split."""

    covariates: Floats
    months: Floats
    event: NDArray[np.bool_]
    centre: NDArray[np.int64]
    split: NDArray[np.object_]

    def among(self, *splits: str) -> Rows:
        """The rows of some splits."""
        inside = np.isin(self.split.astype(str), splits)
        return Rows(**{name: values[inside] for name, values in vars(self).items()})

    def sites(self) -> dict[str, SiteCases]:
        """The rows by centre."""
        own = {int(centre): self.centre == centre for centre in np.unique(self.centre)}
        return {
            f"centre {centre}": SiteCases(
                features=self.covariates[held], group=self.event[held].astype(np.int64), months=self.months[held]
            )
            for centre, held in own.items()
        }


def read_rows(data: Path, seed: int) -> Rows:
    """Read the table and draw a split, stratified by outcome within each centre."""
    path = data / FILE
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected FLamby's Fed-TCGA-BRCA as one parquet table (docs/data.md)")
    frame = pd.read_parquet(path)
    names = [name for name in frame.columns if name not in _OTHER]
    if not set(_OTHER) <= set(frame.columns) or len(names) != COVARIATES:
        raise DataError(f"{path}: expected {', '.join(_OTHER)} and {COVARIATES} covariates; got {len(names)} others")
    frame = frame.set_index("case_id").sort_index()
    centres = frame.groupby(frame["centre"].astype(int))
    parts = [draw_split(own["E"], seed, "fed-tcga-brca", centre) for centre, own in centres]
    return Rows(
        covariates=frame[names].to_numpy(np.float64),
        months=frame["T"].to_numpy(np.float64) / _DAYS_A_MONTH,
        event=frame["E"].to_numpy() == 1,
        centre=frame["centre"].to_numpy(np.int64),
        split=pd.concat(parts).reindex(frame.index).to_numpy(),
    )


def exact(sites: Mapping[str, SiteCases], setting: Setting) -> Iterator[tuple[Setting, Floats]]:
    """Newton steps on sums, each centre a stratum."""
    yield setting, hazard_ratios(fit_sites(ProbeSpec(kind="cox", ridge=setting["penalizer"]), sites))


def pooled(sites: Mapping[str, SiteCases], setting: Setting) -> Iterator[tuple[Setting, Floats]]:
    """Cox regression of lifelines on all rows in one place, without strata."""
    everybody = SiteCases.together(list(sites.values()))
    varying = everybody.features.std(axis=0) > 0
    frame = pd.DataFrame(everybody.features[:, varying]).rename(columns="f{}".format)
    frame["months"], frame["event"] = everybody.months, everybody.group
    coefficients = np.zeros(len(varying))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CoxPHFitter(penalizer=setting["penalizer"]).fit(frame, "months", "event")
    coefficients[varying] = model.params_.to_numpy()
    yield setting, coefficients


def by_rounds(sites: Mapping[str, SiteCases], setting: Setting) -> Iterator[tuple[Setting, Floats]]:
    """Rounds of averaging, a model at each of :data:`ROUNDS` up to the setting's."""
    tally = pool_tallies({site: site_tally(cases, 2) for site, cases in sites.items()})
    deviation = np.sqrt(tally.squares / tally.cases)
    divisor = np.where(deviation > 0, deviation, np.inf)
    scaled = {site: replace(cases, features=(cases.features - tally.mean) / divisor) for site, cases in sites.items()}
    recipe = Recipe(**{name: value for name, value in setting.items() if name != "rounds"})
    for number, coefficients in enumerate(trained_by_rounds(scaled, recipe, int(setting["rounds"])), start=1):
        if number in ROUNDS:
            yield {**setting, "rounds": number}, coefficients / divisor


_RIDGES = tuple({"penalizer": value} for value in PENALIZERS)
METHODS: Mapping[str, tuple[Fit, Sequence[Setting]]] = {
    "exact": (exact, _RIDGES),
    "pooled": (pooled, _RIDGES),
    **{name: (by_rounds, [vars(r) | {"rounds": ROUNDS[-1]} for r in recipes]) for name, recipes in RECIPES.items()},
}


def compare(data: Path, seeds: Sequence[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Metric rows of every method and seed, and the settings that validation rows chose."""
    metrics: list[dict[str, Any]] = []
    chosen: list[dict[str, Any]] = []
    for seed in seeds:
        rows = read_rows(data, seed)
        for method, (fit, settings) in METHODS.items():
            setting = _best(rows, fit, settings)
            *_, (_, coefficients) = fit(rows.among("train", "val").sites(), setting)
            chosen.append({"method": method, "seed": seed, "setting": dict(setting)})
            metrics += _metric_rows(rows.among("test"), coefficients, method, seed)
            say(f"seed {seed}: {method} done")
    return {"metrics": metrics, "chosen": chosen}


def _best(rows: Rows, fit: Fit, settings: Sequence[Setting]) -> Setting:
    """The setting whose model of the training rows ranks validation rows best; the first of equals."""
    train, validation = rows.among("train").sites(), rows.among("val")
    once = np.ones((1, len(validation.months)))
    best, highest = settings[0], -np.inf
    for setting in settings:
        for tried, coefficients in fit(train, setting):
            value = c_index(validation.months, validation.event, validation.covariates @ coefficients, once)[0]
            if value > highest:
                best, highest = tried, value
    return best


def _metric_rows(test: Rows, coefficients: Floats, method: str, seed: int) -> Iterator[dict[str, Any]]:
    """C-index on all test rows and on those of each centre."""
    risk = test.covariates @ coefficients
    parts = {f"centre {centre}": test.centre == centre for centre in np.unique(test.centre)}
    for hospital, inside in {**parts, "all": np.ones(len(risk), dtype=bool)}.items():
        weights = bootstrap_weights(int(inside.sum()), seed, "survival")
        values = c_index(test.months[inside], test.event[inside], risk[inside], weights)
        yield row(method, "survival", "c_index", hospital, summarise([values], int(inside.sum())), seed)

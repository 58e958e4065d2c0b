"""Rows of the published baselines: federated, local and pooled, on the same sites with the same number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from modaltune.data.batch import CaseTensors, readable
from modaltune.data.cohort import Cohort
from modaltune.errors import ConfigError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import readable_rows
from modaltune.evaluation.probes.embeddings import slide_vectors
from modaltune.federation.settings import NEEDS
from modaltune.federation.study import Study
from modaltune.models.baselines.registry import ROWS, baseline_study
from modaltune.models.learner import frozen_encoder
from simulation.compare import Hospitals, Job, Scene, run_jobs, trainable
from simulation.probes import Probed, probe_tables

PROBES = {"gigapath_lp": "longnet", "titan_lp": "titan"}
"""Rows that are probes on a frozen slide encoder, and which encoder a row of that name reads."""
NAMES = (*PROBES, *ROWS)
WAYS = ("federated", "local", "pooled")
ALL = "baselines"
_ENCODERS = {"longnet": "Prov-GigaPath", "titan": "TITAN"}
Say = Callable[[str], None]
Federate = Callable[[Study], pd.DataFrame]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One row of the comparison.

    Attributes:
        tables: predictions by the hospital whose model it is ("" = one for all).
        notes: what to know.
        everybody: one model predicts the cases of all cohorts.
    """

    method: str
    tables: Mapping[str, pd.DataFrame]
    notes: tuple[str, ...] = ()
    everybody: bool = True


def baseline_methods(name: str) -> tuple[str, ...]:
    """``abmil`` -> its federated, local and pooled row; ``abmil/local`` -> that; ``baselines`` -> all; else ().

    All but those of TITAN: on another encoder they are the rows of GigaPath once more.
    """
    kind, _, way = name.partition("/")
    kinds = (
        tuple(row for row in NAMES if not row.startswith("titan_")) if name == ALL else (kind,) if kind in NAMES else ()
    )
    if way and way not in WAYS:
        return ()
    return tuple(f"{kind}/{chosen}" for kind in kinds for chosen in ([way] if way else WAYS))


def run_baselines(
    methods: Sequence[str], data: Hospitals, scene: Scene, federate: Federate, say: Say
) -> Iterator[Found]:
    """Train and score baselines one kind after the other.

    Args:
        methods: as :func:`baseline_methods` gives them; others are passed over.
        data: the hospitals, prepared for the study's own model.
        federate: runs a variant of the study and predicts everybody's test cases.
    """
    for kind in NAMES:
        ways = [way for way in WAYS if f"{kind}/{way}" in methods]
        if not ways:
            continue
        if reason := unreadable(kind, data.cohorts.values()):
            yield from (Found(method=f"{kind}/{way}", tables={}, notes=(f"{kind}: n/a: {reason}.",)) for way in ways)
            continue
        notes = remarks(kind, data)
        run = _probe if kind in PROBES else _trained
        for found in run(kind, ways, data, scene, federate, say):
            yield replace(found, notes=(*found.notes, *notes))


def unreadable(kind: str, cohorts: Iterable[Cohort]) -> str | None:
    """Why a baseline has no row in this federation."""
    for cohort in cohorts:
        train = cohort.cases.index[cohort.cases["split"] == "train"]
        genes = train[:0] if cohort.expression is None else cohort.expression.index
        have = {"slides": set(cohort.bags), "expression": set(genes)}
        if set(train).intersection(*(have[name] for name in NEEDS[kind])):
            return None
    return f"no training case has {' and '.join(NEEDS[kind])}"


def remarks(kind: str, data: Hospitals) -> tuple[str, ...]:
    """What to know of the rows of a model: cases that it leaves out, and whether its encoder is a stand-in."""
    return (*_unread(kind, data), *_stand_in(kind, data))


def _unread(kind: str, data: Hospitals) -> tuple[str, ...]:
    """How many test cases its rows leave out."""
    test = [case for site in data.truth for case in _test_cases(data, site)]
    left_out = sum(not readable(case, NEEDS[kind]) for case in test)
    if not left_out:
        return ()
    needs = " or ".join(NEEDS[kind])
    return (f"{kind}: {left_out} of {len(test)} test cases lack {needs} and are left out of its rows.",)


def _stand_in(kind: str, data: Hospitals) -> tuple[str, ...]:
    """Whether its rows were made with another slide encoder than the one that their name says."""
    own = PROBES | {name: row.encoder for name, row in ROWS.items() if row.encoder}
    encoder = data.study.slides.encoder
    if own.get(kind, encoder) == encoder:
        return ()
    if encoder in _ENCODERS:
        return (f"{kind}: the slide encoder is {_ENCODERS[encoder]}, not {_ENCODERS[own[kind]]}.",)
    return (f"{kind}: stand-in: the slide encoder is {encoder!r} in place of {_ENCODERS[own[kind]]}.",)


def _trained(
    kind: str, ways: Sequence[str], data: Hospitals, scene: Scene, federate: Federate, say: Say
) -> Iterator[Found]:
    study = baseline_study(data.study, kind)
    if "federated" in ways:
        say(f"federating {kind}")
        yield Found(method=f"{kind}/federated", tables={"": federate(study)})
    steps = data.budget(study.model.needs)
    jobs = [Job(method="pooled", steps=steps)] if "pooled" in ways else []
    if "local" in ways:
        jobs += [Job(method="local", hospital=site, steps=steps) for site in trainable(data, NEEDS[kind])]
    if not jobs:
        return
    say(f"training {len(jobs)} models of {kind} for comparison, {steps} steps each")
    tables: dict[str, dict[str, pd.DataFrame]] = {}
    for job, predicted in run_jobs(replace(scene, study=study.to_json()), jobs):
        tables.setdefault(job.method, {})[job.hospital] = predicted.table
    for way, found in tables.items():
        yield Found(method=f"{kind}/{way}", tables=found)


def _probe(
    kind: str, ways: Sequence[str], data: Hospitals, scene: Scene, federate: Federate, say: Say
) -> Iterator[Found]:
    """The linear probe on the frozen slide encoder."""
    say(f"fitting {kind}")
    for way in ways:
        groups = (
            {site: [site] for site in trainable(data, NEEDS[kind])} if way == "local" else {"": sorted(data.cohorts)}
        )
        together = way != "federated"
        found = {owner: _probe_predictions(kind, data, sites, together=together) for owner, sites in groups.items()}
        notes = () if way == "local" else tuple(f"{kind}/{way}, {note}" for note in found[""].notes)
        tables = {owner: one.table for owner, one in found.items()}
        yield Found(method=f"{kind}/{way}", tables=tables, notes=notes, everybody=not data.cancers)


def _probe_predictions(kind: str, data: Hospitals, sites: Sequence[str], *, together: bool) -> Probed:
    """Predictions of probes fitted in one place, or by sums over hospitals: survival is then stratified by hospital."""
    encoder = frozen_encoder(data.study)

    def embed(cases: Sequence[CaseTensors]) -> dict[str, Floats]:
        return dict.fromkeys((task.name for task in data.study.tasks), slide_vectors(cases, encoder))

    table, notes = probe_tables(data, embed, sites, together=together, needs=NEEDS[kind])
    parts = [
        readable_rows(table[table["hospital"] == site], _test_cases(data, site), NEEDS[kind])
        for site in sorted(data.truth)
    ]
    return Probed(pd.concat(parts, ignore_index=True), notes)


def _test_cases(data: Hospitals, site: str) -> list[CaseTensors]:
    keep = (data.truth[site].cases["split"] == "test").to_numpy(np.bool_)
    return [case for case, inside in zip(data.truth_cases[site], keep, strict=True) if inside]


def chosen_methods(methods: Sequence[str], comparisons: Sequence[str]) -> tuple[str, ...]:
    """Names of ``--methods`` as rows, each once.

    Raises:
        ConfigError: a name that is neither a comparison nor a baseline.
    """
    out: dict[str, None] = {}
    for name in methods:
        rows = (name,) if name in comparisons else baseline_methods(name)
        if not rows:
            raise ConfigError(
                f"--methods: unknown {name!r}; choose from {', '.join((*comparisons, ALL, *NAMES))}; a baseline may"
                f" be followed by {', '.join('/' + way for way in WAYS)}"
            )
        out |= dict.fromkeys(rows)
    return tuple(out)

"""How accepted updates become new weights: a mean as they arrive, or a rule that needs the whole round.

Every rule works parameter by parameter over the sites whose cases exercised it. All but the mean count each site once,
whatever its number of cases: a weight is a claim, and robust rules believe none.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedYogi
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import compute_distances
from numpy.typing import NDArray

from modaltune.errors import ConfigError, FederationError, ReplyRefused
from modaltune.federation.average import KeywiseMean, State, Update, shortened, squared_changes
from modaltune.federation.settings import AggregationSpec
from modaltune.federation.study import Study
from server.spool import InOrder, Spool

_OPTIMISERS = {"adam": FedAdam, "yogi": FedYogi}


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What one site's update weighed in a round.

    Attributes:
        length: Euclidean length of its change.
        kept: what clipping left of it, 1 = all.
    """

    length: float
    kept: float = 1.0


def check_rule(study: Study) -> None:
    """Refuse krum where it leaves nobody out, or has too few sites to tell who that is.

    Raises:
        ConfigError: says what it needs.
    """
    hostile, sites = study.aggregation.hostile, len(study.roster)
    if study.aggregation.rule == "krum" and not 0 < 2 * hostile <= sites - 3:
        raise ConfigError(
            f"study {study.name}: aggregation.rule = 'krum' needs aggregation.hostile of 1 or more, and a roster of two"
            f" sites for each and three more; found hostile = {hostile} and {sites} sites"
        )


class Gathering:
    """The updates of one round on their way into new weights.

    Args:
        names: sites that were asked.
        usual: median length of the last round's updates; None in the first round.
        folder: for updates that have to wait on disk.
    """

    def __init__(self, study: Study, previous: State, names: Iterable[str], usual: float | None, folder: Path) -> None:
        self.spec, self.previous, self.needed = study.aggregation, previous, study.privacy.min_contributors
        self.usual = usual
        self.influence: dict[str, Influence] = {}
        self.examples: dict[str, Mapping[str, int]] = {}
        self._squares: dict[str, dict[str, float]] = {}
        self._spool = Spool(folder)
        self._mean = KeywiseMean(previous, self.needed)
        self._order = InOrder(names, self._spool, self._mean.add)

    def accept(self, site: str, update: Update) -> None:
        """Count a checked update in.

        Raises:
            OSError: the coordinator's disk, nothing of the site's.
        """
        if not self.spec.keywise:
            update = replace(update, examples=dict.fromkeys(update.examples, max(update.examples.values(), default=0)))
        squares = squared_changes(update, self.previous)
        size, kept = math.sqrt(sum(squares.values())), 1.0
        if self.usual and self.spec.clip and size > self.spec.clip * self.usual:
            kept = self.spec.clip * self.usual / size
            update = shortened(update, self.previous, kept)
        if self.spec.rule == "mean":
            self._order.put(site, update)
        else:
            self._spool.put(site, update)
        self._squares[site] = {key: square * kept**2 for key, square in squares.items()}
        self.influence[site] = Influence(length=size, kept=kept)
        self.examples[site] = update.examples

    def give_up(self, site: str) -> None:
        """Nothing will come from a site."""
        self._order.give_up(site)

    def outliers(self) -> list[ReplyRefused]:
        """Sites that do not fit the others of the round; only where the round waits on disk."""
        if self.spec.rule == "mean":
            return []
        refused = [
            ReplyRefused(site, f"its change is more than {self.spec.outlier:g} times the median")
            for site in self._far()
        ]
        if self.spec.rule == "krum":
            refused += [
                ReplyRefused(site, "it trains other parameters than most sites, and krum compares whole updates")
                for site in self._unlike({error.site for error in refused})
            ]
        for error in refused:
            self._spool.take(error.site)
            del self.influence[error.site], self.examples[error.site]
        return refused

    def _far(self) -> list[str]:
        if not self.spec.outlier or len(self.influence) < 3:
            return []
        bound = self.spec.outlier * statistics.median(found.length for found in self.influence.values())
        return [site for site, found in self.influence.items() if found.length > bound > 0]

    def _unlike(self, refused: set[str]) -> list[str]:
        """Sites outside the majority that trains the same parameters; without a majority, krum has no meaning."""
        sets = {site: _exercised(found) for site, found in self.examples.items() if site not in refused}
        common, count = Counter(sets.values()).most_common(1)[0] if sets else (frozenset(), 0)
        if sets and 2 * count <= len(sets):
            raise FederationError(
                "aggregation.rule = 'krum' compares whole updates, but the sites of this study train different"
                " parameters; use 'median' or 'trimmed_mean'"
            )
        return [site for site, found in sets.items() if found != common]

    def finish(self) -> State:
        """The new weights; the folder is gone afterwards."""
        try:
            if self.spec.rule == "mean":
                self._order.finish()
                mean = self._mean.result()
                return self._extrapolated(mean) if self.spec.extrapolate else mean
            return _robust(self.spec, self._spool, self.previous, self.needed)
        finally:
            self._spool.close()

    def _extrapolated(self, mean: State) -> State:
        """A longer step where changes cancel in the mean: half their mean squared length over that of the mean.

        Sites with different tasks move different things, and a mean makes each of these moves shorter by what it weighs
        (FedExP, arXiv 2301.09604). At least the mean itself; at most what changes of equal weight give that have
        nothing in common, so that two sites which cancel each other cannot throw the others' changes far.
        """
        changes = {
            key: mean[key].astype(np.float64) - old for key, old in self.previous.items() if self._mean.moved(key)
        }
        squares = sum(self._mean_square(key) for key in changes)
        common = sum(float(np.sum(np.square(change))) for change in changes.values())
        factor = max(1.0, min(squares / (2 * common), len(self.examples) / 2)) if common else 1.0
        return mean | {
            key: np.asarray(self.previous[key] + factor * change, dtype=np.float32) for key, change in changes.items()
        }

    def _mean_square(self, key: str) -> float:
        """Of one parameter: squared length of the sites' changes, averaged as the mean weighs them."""
        counted = [
            (self.examples[site][key], found[key]) for site, found in sorted(self._squares.items()) if key in found
        ]
        return sum(cases * square for cases, square in counted) / sum(cases for cases, _ in counted)

    def close(self) -> None:
        """Forget everything: the round is repeated or the run ends."""
        self._spool.close()

    @property
    def usual_length(self) -> float | None:
        """Median length of the updates as counted, what the next round is measured by."""
        lengths = [found.length * found.kept for found in self.influence.values() if found.length > 0]
        return statistics.median(lengths) if lengths else self.usual

    def report(self) -> dict[str, dict[str, Any]]:
        """Influence by site for the round log: length, what clipping kept, and the share of all movement."""
        weights = {
            site: found.length * found.kept * max(self.examples[site].values(), default=0)
            for site, found in self.influence.items()
        }
        total = sum(weights.values()) or 1.0
        return {
            site: {name: round(value, 6) for name, value in asdict(self.influence[site]).items()}
            | {"share": round(weights[site] / total, 6)}
            for site in sorted(weights)
        }


def _robust(spec: AggregationSpec, spool: Spool, previous: State, needed: int) -> State:
    if spec.rule == "krum":
        return _krum(spec, spool, previous, needed)
    out = State()
    for key, old in previous.items():
        sites = spool.contributors(key)
        if len(sites) < max(1, needed):
            out[key] = old
            continue
        stacked = np.stack([spool.array(site, key) for site in sites])
        found = np.median(stacked, axis=0) if spec.rule == "median" else _trimmed(stacked, spec.trim)
        out[key] = np.asarray(found, dtype=np.float32)
    return out


def _trimmed(stacked: NDArray[np.float32], trim: float) -> NDArray[np.float32]:
    """Mean without a share of the values at each end: at least one there, with three sites or more."""
    few = trim and len(stacked) >= 3 and int(trim * len(stacked)) == 0
    found: NDArray[np.float32] = trim_mean(stacked, 1.25 / len(stacked) if few else trim)
    return found


def _krum(spec: AggregationSpec, spool: Spool, previous: State, needed: int) -> State:
    """Mean over the sites nearest to their neighbours (Multi-Krum); distances are summed over the parameters."""
    sites = sorted(spool.examples)
    distances = np.zeros((len(sites), len(sites)))
    for key in sorted(_exercised(spool.examples[sites[0]])):
        changes = [spool.array(site, key).astype(np.float64) - previous[key] for site in sites]
        distances += compute_distances([ArrayRecord({key: Array(np.asarray(change))}) for change in changes])
    near = max(1, len(sites) - spec.hostile - 2)
    scores = np.sort(distances, axis=1)[:, 1 : near + 1].sum(axis=1)
    mean = KeywiseMean(previous, needed)
    for index in sorted(np.argsort(scores, kind="stable")[: max(1, len(sites) - spec.hostile)]):
        update = spool.take(sites[index])
        mean.add(replace(update, examples={key: min(cases, 1) for key, cases in update.examples.items()}))
    return mean.result()


def _exercised(examples: Mapping[str, int]) -> frozenset[str]:
    return frozenset(key for key, cases in examples.items() if cases > 0)


class ServerOptimiser:
    """Flower's FedAdam or FedYogi on top of a rule's result; its moments are part of the server's state.

    A parameter that no rule moved in a round keeps its value; its moments see no change in that round.
    """

    def __init__(self, spec: AggregationSpec, moments: Mapping[str, State] | None = None) -> None:
        self.spec, self.moments = spec, dict(moments or {})

    def step(self, number: int, previous: State, target: State) -> State:
        """Weights after round ``number``, from the weights before it and what the rule made of the updates."""
        if self.spec.optimiser == "none":
            return target
        flower = _OPTIMISERS[self.spec.optimiser](
            eta=self.spec.learning_rate, beta_1=self.spec.beta1, beta_2=self.spec.beta2, tau=self.spec.tau
        )
        flower.current_arrays = dict(previous)
        flower.m_t, flower.v_t = self.moments.get("m"), self.moments.get("v")
        arrays, _ = flower.aggregate_train(number, [_as_reply(target)])
        if arrays is None or flower.m_t is None or flower.v_t is None:
            raise FederationError("Flower's server optimiser gave no weights")
        self.moments = {name: _single(state) for name, state in (("m", flower.m_t), ("v", flower.v_t))}
        return {
            key: old if np.array_equal(old, target[key]) else np.asarray(arrays[key].numpy(), dtype=np.float32)
            for key, old in previous.items()
        }


def _single(state: Mapping[str, Any]) -> State:
    return {key: np.asarray(value, dtype=np.float32) for key, value in state.items()}


def _as_reply(target: State) -> Message:
    record = ArrayRecord({key: Array(value) for key, value in target.items()})
    content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, dst_node_id=0, message_type="train")

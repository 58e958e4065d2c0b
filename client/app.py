"""Flower ClientApp of a hospital: read the message, ask the site, reply. Failures leave as a code, never as text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.label_queries import ANSWER, read_label_query
from client.probes import PROBES, SUMS, TALLIES, read_probe, read_probes
from client.runtime import Site
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError, ModalTuneError
from modaltune.federation.evaluation_counts import COUNTS
from modaltune.federation.wire import Packed, seal, unseal

logger = logging.getLogger(__name__)
Locate = Callable[[Context], Path]
Handler = Callable[[Site, Message], RecordDict]


def make_app(locate: Locate) -> ClientApp:
    """The ClientApp of the site whose folder ``locate`` finds from the node's context."""
    app = ClientApp()

    def guarded(handler: Handler) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            try:
                site = Site.of(locate(context), str(message.content.config_records["study"]["study"]))
                content = handler(site, message)
            except ModalTuneError as error:
                logger.error("%s", error)
                content = _failure(type(error).__name__)
            except Exception:  # whatever a site's data provokes stays in the site's own log
                logger.exception("unexpected failure while answering the server")
                content = _failure("UnexpectedError")
            return Message(content=content, reply_to=message)

        return answer

    app.query("capability")(guarded(capability))
    app.query("statistics")(guarded(statistics))
    app.train()(guarded(train))
    app.evaluate()(guarded(evaluate))
    app.query("label")(guarded(label_query))
    app.query("tally")(guarded(tally))
    app.query("probe")(guarded(probe))
    return app


def capability(site: Site, message: Message) -> RecordDict:
    """Who this is and what it can contribute."""
    known = {name: value for name, value in site.capability().items() if value != []}  # Flower cannot count []
    return RecordDict({"capability": ConfigRecord(known)})


def statistics(site: Site, message: Message) -> RecordDict:
    """Sums over training cases for the gene panel in the message."""
    genes = message.content.config_records["study"].get("genes", [])
    sums = site.statistics([str(gene) for gene in genes] if isinstance(genes, list) else [])
    return RecordDict({"statistics": _record(sums)})


def train(site: Site, message: Message) -> RecordDict:
    """One round of local training."""
    config = message.content.config_records["study"]
    reply = site.train(_preprocessing(message), _arrays(message), int(str(config["round"])))
    return RecordDict(
        {
            "arrays": _record(reply.arrays),
            "examples": MetricRecord(dict(reply.examples)),
            "metrics": MetricRecord(dict(reply.metrics)),
        }
    )


def evaluate(site: Site, message: Message) -> RecordDict:
    """Metrics on this site's own test cases, and counts of them where the study asks."""
    preprocessing = _preprocessing(message)
    probes = read_probes(message, site.study, preprocessing) if PROBES in message.content else {}
    found = site.evaluate(preprocessing, _arrays(message), probes)
    records = RecordDict({"metrics": MetricRecord(dict(found.metrics))})
    if site.study.evaluation.counts:
        records[COUNTS] = _record(found.counts)
    return records


def label_query(site: Site, message: Message) -> RecordDict:
    """How the texts of a label query divide this site's cases."""
    query = read_label_query(message, site.study)
    answer = site.label_query(_preprocessing(message), _arrays(message), query)
    return RecordDict({ANSWER: _record(answer)})


def tally(site: Site, message: Message) -> RecordDict:
    """Tallies of this site's training cases, for probes."""
    return RecordDict({TALLIES: _record(site.tally(_preprocessing(message), _arrays(message)))})


def probe(site: Site, message: Message) -> RecordDict:
    """Sums over this site's training cases, for one step of a probe."""
    return RecordDict({SUMS: _record(site.probe(read_probe(message, site.study)))})


def _failure(code: str) -> RecordDict:
    return RecordDict({"failure": ConfigRecord({"code": code})})


def _preprocessing(message: Message) -> Preprocessing:
    return Preprocessing.from_json(str(message.content.config_records["study"]["preprocessing"]))


def _arrays(message: Message) -> Packed:
    return unseal(message.content.array_records["arrays"], "the server")


def _record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in seal(arrays).items()})


def site_folder(context: Context) -> Path:
    """The folder that the hospital's node configuration names (``site-folder="..."``)."""
    folder = context.node_config.get("site-folder")
    if not folder:
        raise ConfigError("node configuration has no 'site-folder'; start the SuperNode with --node-config")
    return Path(str(folder))


app = make_app(site_folder)

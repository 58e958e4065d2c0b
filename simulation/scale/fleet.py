"""Many sites in one process that only answer: real keys, TLS and messages of full size, no data and no training."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.supercore import heartbeat
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import fleet_http_connection
from numpy.typing import NDArray

from modaltune.federation.capability import versions
from modaltune.federation.manifest import TRAIN_METRICS
from modaltune.federation.statistics import statistics_shapes
from modaltune.federation.study import Study
from modaltune.federation.wire import seal, unseal
from modaltune.seeds import numpy_generator

CASES = 20
_WORKERS = 4
_POLL_SECONDS, _REQUESTS_A_SECOND, _BEATS_A_SECOND = 3.0, 33.0, 3.0
"""How often a SuperNode asks for messages; how often all sites together ask, and give a sign of life, at most: hundreds
do both less often."""


def run_fleet(address: str, keys: Path, authority: Path) -> None:
    """Answer for the site of every key in a folder, until the process is told to stop."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, 0
    sites = sorted(keys.glob("*.key"))
    _beat_every(max(HEARTBEAT_DEFAULT_INTERVAL, round(len(sites) / _BEATS_A_SECOND)))
    with ExitStack() as stack, ThreadPoolExecutor(_WORKERS) as pool:
        nodes = [Node(path.stem, stack.enter_context(connection(address, path, authority))) for path in sites]
        sys.stdout.write("connected\n")
        sys.stdout.flush()
        pause = max(_POLL_SECONDS, len(nodes) / _REQUESTS_A_SECOND)
        while True:
            now = time.monotonic()
            list(pool.map(partial(Node.answer, pause=pause), [node for node in nodes if node.due <= now]))
            time.sleep(0.02)


def _beat_every(seconds: int) -> None:
    """Flower has no setting for it; at its 30 seconds, a thousand sites would ask for little else."""
    for module in (heartbeat, fleet_http_connection):
        vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = seconds


def connection(address: str, key: Path, authority: Path, **options: Any) -> Any:
    """A line to the coordinator as Flower's SuperNode opens it, with a site's real key."""
    private = load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    pair = (private, private.public_key())
    return fleet_http_connection.http_request_response(address, False, authority.read_bytes(), pair, **options)


class Node:
    """One site."""

    def __init__(self, site: str, line: Any) -> None:
        self.site, self.due = site, 0.0
        _, self.receive, self.send, _, _, self.pull, self.push, self.confirm = line

    def answer(self, pause: float = 0.0) -> bool:
        """Answer one question, if there is one; the next look is due in ``pause`` seconds."""
        received = self.receive()
        self.due = time.monotonic() + pause
        if received is None:
            return False
        header, tree = received
        run, name = header.metadata.run_id, header.metadata.message_id
        contents = pull_objects(
            [part.object_id for part in iterate_object_tree(tree)], pull_object_fn=lambda part: self.pull(run, part)
        )
        self.confirm(run, name)
        question = inflate_object_from_contents(name, contents)
        assert isinstance(question, Message)
        question.metadata.__dict__["_message_id"] = name
        self.deliver(self.reply(question))
        return True

    def reply(self, question: Message) -> Message:
        """What this site answers."""
        return Message(ANSWERS[question.metadata.message_type](self.site, question.content), reply_to=question)

    def deliver(self, reply: Message) -> None:
        """Send a reply, piece by piece."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            wanted, session = self.send(reply, get_object_tree(reply), 0.0)
            for part in objects:
                if part in wanted:
                    self.push(reply.metadata.run_id, session, part, objects[part].deflate())


def _study(content: RecordDict) -> Study:
    return Study.from_json(str(content.config_records["study"]["study"]))


def _capability(site: str, content: RecordDict) -> RecordDict:
    study = _study(content)
    genes = sorted({gene for members in study.gene_sets.values() for gene in members})
    known: dict[str, Any] = {
        "site": site,
        "tasks": [task.name for task in study.tasks],
        "genes": genes,
        "modalities": ["slides", "expression"],
        **dict.fromkeys(("cases-train", "cases-val", "cases-test"), CASES),
        **{f"version-{name}": value for name, value in versions().items()},
    }
    return RecordDict({"capability": ConfigRecord(known)})


def _statistics(site: str, content: RecordDict) -> RecordDict:
    genes = [str(gene) for gene in content.config_records["study"].get("genes", [])]  # type: ignore[union-attr]
    sums = {name: np.full(shape, float(CASES)) for name, shape in statistics_shapes(_study(content), genes).items()}
    return RecordDict({"statistics": _record(sums)})


def _train(site: str, content: RecordDict) -> RecordDict:
    """A change of full size; no two sites send the same bytes, or Flower would keep one copy for all."""
    draw = numpy_generator(0, "scale", site, str(content.config_records["study"]["round"]))
    arrays = {
        name: np.asarray(0.01 * draw.standard_normal(value.shape, dtype=np.float32), dtype=np.float16)
        for name, value in unseal(content.array_records["arrays"], "the server").items()
    }
    return RecordDict(
        {
            "arrays": _record(arrays),
            "examples": MetricRecord(dict.fromkeys(arrays, CASES)),
            "metrics": MetricRecord(dict.fromkeys(TRAIN_METRICS, 1.0)),
        }
    )


def _record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in seal(arrays).items()})


def _evaluate(site: str, content: RecordDict) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({})})


ANSWERS: Mapping[str, Callable[[str, RecordDict], RecordDict]] = {
    "query.capability": _capability,
    "query.statistics": _statistics,
    "train": _train,
    "evaluate": _evaluate,
}

if __name__ == "__main__":
    run_fleet(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

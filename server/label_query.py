"""Label queries as the coordinator asks them: after a run, about its model, within what the hospitals approved.

Exploratory: nobody labelled the task, so nothing says whether an answer is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from modaltune.data.preprocessing import Preprocessing
from modaltune.encoders.text import verified_text_encoder
from modaltune.errors import ConfigError, ModalTuneError, ReplyRefused, RunFailed
from modaltune.federation.label_query import HELD_BACK, LabelQuery, answer_manifest, problem_with
from modaltune.federation.manifest import MOST_CASES
from modaltune.federation.settings import Name
from modaltune.federation.study import Study
from modaltune.federation.wire import read_floats, seal
from modaltune.storage import load_state, write_json
from server.disk import own_disk
from server.exchange import Round
from server.rounds import Federation

_PHASE = "label-query"
Numbers = NDArray[np.float64]
QUERY_FILE, ANSWER_FILE = "query.json", "answer.json"
NOTE = "exploratory: nobody labelled this task; no answer here was checked against anything"


class Asked(BaseModel):
    """A query as it is kept in ``query.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Name
    texts: tuple[str, ...]

    @classmethod
    def of(cls, name: str, template: str, candidates: Sequence[str]) -> Asked:
        """Fill the candidates into the template."""
        if "{text}" not in template:
            raise ConfigError("--template must contain {text}, e.g. 'a slide of {text}'")
        try:
            return cls(name=name, texts=tuple(template.replace("{text}", text) for text in candidates))
        except ValidationError:
            raise ConfigError("--task: use letters, digits, '-' and '_', at most 64") from None

    def embedded(self, study: Study) -> LabelQuery:
        """With the vectors of its texts, by the study's text encoder.

        Raises:
            ConfigError: the study does not allow it.
        """
        blank = np.zeros((len(self.texts), 1), np.float32)
        blank[:, 0] = 1
        LabelQuery(name=self.name, texts=self.texts, vectors=blank).check(study)  # before an encoder is loaded
        vectors = verified_text_encoder(study.text).encode(self.texts).numpy()
        query = LabelQuery(name=self.name, texts=self.texts, vectors=vectors)
        query.check(study)
        return query


def ask_sites(
    grid: Grid,
    study: Study,
    model: Path,
    folder: Path,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    nodes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Ask the query in a folder and write the answer beside it."""
    asked = Asked.model_validate_json((folder / QUERY_FILE).read_bytes())
    return Inquiry(grid, study, model, folder, progress, nodes).ask(asked.embedded(study))


class Inquiry(Federation):
    """Asks the sites of a finished run one label query; keeps its own round log and status in ``out``.

    Args:
        model: folder of the run's model.
        out: folder of the query; the answer is written into it.
        progress, nodes: as for a federation.
    """

    def __init__(
        self,
        grid: Grid,
        study: Study,
        model: Path,
        out: Path,
        progress: Callable[[Mapping[str, Any]], None] | None = None,
        nodes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(grid, study, out, progress, nodes)
        self.model = model

    def ask(self, query: LabelQuery) -> dict[str, Any]:
        """Ask every site of the roster that is there.

        Raises:
            RunFailed: none answered, or the coordinator's disk failed.
        """
        try:
            with own_disk(self.out, "ask again"):
                return self._ask_sites(query)
        except ModalTuneError as error:
            with suppress(OSError):  # a full disk may be why
                self._say("FAILED", phase=_PHASE, reason=str(error))
            raise

    def _ask_sites(self, query: LabelQuery) -> dict[str, Any]:
        query.check(self.study)
        self._enrol()
        self._build(Preprocessing.from_json((self.model / "preprocessing.json").read_text(encoding="utf-8")))
        weights = {name: value.numpy() for name, value in load_state(self.model / "weights.safetensors").items()}
        question = self._weights_message(weights, name=query.name, texts=list(query.texts))
        question["vectors"] = ArrayRecord(
            {name: Array(value) for name, value in seal({"vectors": query.vectors}).items()}
        )
        this, found = Round(number=self.study.training.rounds, phase=_PHASE), dict[str, dict[str, Numbers]]()
        for site, reply in self._ask(this, "query.label", question):
            with this.judging(site):
                found[site] = self._answer(site, reply, query)
        self._log(this, found, query=query.digest)
        if not found:
            raise RunFailed(f"label query {query.name}: no site answered ({this.why_short()})")
        document = _document(query, self.study, found) | {"missing": this.missing, "refused": this.refused}
        write_json(self.out / ANSWER_FILE, document)
        self._say("DEGRADED" if self.degraded else "OK", phase=_PHASE)
        return document

    def _answer(self, site: str, reply: RecordDict, query: LabelQuery) -> dict[str, Numbers]:
        answer = read_floats(reply.array_records[_PHASE], answer_manifest(self.study, query), site)
        if problem := problem_with(answer, self.study.privacy.min_cell, MOST_CASES):
            raise ReplyRefused(site, problem)
        return answer


def answer_table(document: Mapping[str, Any]) -> Table:
    """For the terminal: cases by text and hospital; "held back" where a count is too small."""
    table = Table("Text", title=Text(f"{document['query']['task']} (exploratory)"), box=SIMPLE_HEAD)
    sites = document["sites"]
    for site, found in sites.items():
        table.add_column(f"{site}, n = {found['cases']}", justify="right")
    for number, text in enumerate(document["query"]["texts"]):
        table.add_row(Text(text), *(_cell(found, number) for found in sites.values()))
    return table


def _cell(found: Mapping[str, Any], number: int) -> str:
    count = "held back" if found["counts"] is None else str(found["counts"][number])
    return count if found["probability"] is None else f"{count} ({found['probability'][number]:.2f})"


def _document(query: LabelQuery, study: Study, found: Mapping[str, Mapping[str, Numbers]]) -> dict[str, Any]:
    asked = {"task": query.name, "texts": list(query.texts), "sha256": query.digest}
    sites = {site: _told(study, answer) for site, answer in sorted(found.items())}
    return {"note": NOTE, "study": study.digest, "query": asked, "sites": sites}


def _told(study: Study, answer: Mapping[str, Numbers]) -> dict[str, Any]:
    """One site's answer; None = held back."""
    tables = {name.removeprefix("by."): value for name, value in answer.items() if name.startswith("by.")}
    return {
        "cases": int(answer["cases"][0]),
        "counts": _numbers(answer["counts"]),
        "probability": _numbers(answer["probability"], whole=False),
        "by_label": {
            task: None
            if (table == HELD_BACK).all()
            else dict(zip(_rows(study, task), table.astype(int).tolist(), strict=True))
            for task, table in tables.items()
        },
    }


def _rows(study: Study, task: str) -> tuple[str, ...]:
    return (*study.task(task).values, "no label")


def _numbers(values: Numbers, *, whole: bool = True) -> list[int] | list[float] | None:
    if (values == HELD_BACK).all():
        return None
    return [int(value) for value in values] if whole else [round(float(value), 4) for value in values]

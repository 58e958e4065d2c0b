"""A label query from the coordinator through the client app and back, over bytes, on the model of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modaltune.errors import ConfigError, RunFailed
from modaltune.federation.settings import LabelQuerySpec
from modaltune.federation.study import Study
from modaltune.storage import write_text
from server.label_query import NOTE, QUERY_FILE, Asked, answer_table, ask_sites
from server.rounds import Federation
from tests.integration.grids import LocalGrid

pytestmark = pytest.mark.slow
ASKED = Asked.of("necrosis", "a slide with {text}", ["much necrosis", "little necrosis"])


def test_every_hospital_answers_and_the_answer_is_marked_exploratory(
    study: Study, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    queries = LabelQuerySpec(budget=1, max_candidates=2, by_label=True)
    changes = {"label_queries": queries, "roster": ("H1", "H2"), "tasks": study.tasks[:1]}
    training = study.training.model_copy(update={"rounds": 1})
    asked = study.model_copy(update=changes | {"training": training})
    folders = {site: hospitals[site] for site in asked.roster}
    Federation(LocalGrid(folders), asked, tmp_path / "run").run()
    folder = tmp_path / "run" / "queries" / "necrosis-1"
    write_text(folder / QUERY_FILE, ASKED.model_dump_json())
    found = ask_sites(LocalGrid(folders), asked, tmp_path / "run" / "model", folder)
    assert found == json.loads((folder / "answer.json").read_text())
    assert (found["note"], found["missing"], found["refused"]) == (NOTE, [], {})
    assert set(found["sites"]) == {"H1", "H2"}
    for answer in found["sites"].values():
        assert sum(answer["counts"]) == answer["cases"] > 0
        assert sum(answer["probability"]) == pytest.approx(1, abs=1e-3)
        assert set(answer["by_label"]["diagnosis"]) == {*asked.tasks[0].values, "no label"}
    assert json.loads((tmp_path / "run" / "status.json").read_text())["phase"] != "label-query", "the run keeps its own"
    assert answer_table(found).row_count == 2
    silent = LocalGrid(folders, tamper=lambda site, reply: [])
    with pytest.raises(RunFailed):
        ask_sites(silent, asked.model_copy(update={"deadline_seconds": 0.2, "attempts": 1}), tmp_path, folder)


def test_a_template_needs_a_place_for_the_text_and_a_study_a_budget(study: Study) -> None:
    with pytest.raises(ConfigError, match=r"must contain \{text\}"):
        Asked.of("necrosis", "a slide", ["a", "b"])
    with pytest.raises(ConfigError, match="--task"):
        Asked.of("not a name", "{text}", ["a", "b"])
    with pytest.raises(ConfigError, match=r"label_queries\.budget is 0"):
        ASKED.embedded(study)

"""A coordinator that dies at any moment goes on where it stopped, and ends with the same weights."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from modaltune.errors import ConfigError, FederationError, ModelFileError, RunFailed
from modaltune.federation.settings import AggregationSpec
from modaltune.federation.study import Study
from server.app import admitted_nodes
from server.finish import finish
from server.rounds import Federation, Result
from tests.integration.grids import LocalGrid, pack, unpack
from tests.integration.helpers import SITES, read_rounds

ROUNDS = 3


class Killed(Exception):
    """The process ends here."""


class DyingGrid(LocalGrid):
    """Dies at the n-th question that it is asked to send."""

    left = 10**9

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return super().push_messages(messages)


@pytest.fixture(scope="module")
def three_rounds(study: Study) -> Study:
    changes = {
        "roster": SITES,
        "training": study.training.model_copy(update={"rounds": ROUNDS, "wire": "int8"}),
        "aggregation": study.aggregation.model_copy(update={"optimiser": "yogi"}),
        "deadline_seconds": 20.0,
    }
    return study.model_copy(update=changes)


@pytest.fixture(scope="module")
def undisturbed(three_rounds: Study, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return Federation(LocalGrid(folders), three_rounds, tmp_path_factory.mktemp("undisturbed")).run()


@pytest.mark.parametrize("asked", range(0, 3 * (3 + ROUNDS), 2))
def test_a_run_killed_at_any_question_goes_on_to_the_same_weights(
    asked: int, three_rounds: Study, folders: dict[str, Path], undisturbed: Result, tmp_path: Path
) -> None:
    grid = DyingGrid(folders)
    grid.left = asked
    with pytest.raises(Killed):
        Federation(grid, three_rounds, tmp_path).run()
    result = Federation(LocalGrid(folders, first_node=5001), three_rounds, tmp_path).run()
    assert (result.status, result.weights_hash) == ("OK", undisturbed.weights_hash)
    assert result.steps == undisturbed.steps
    trained = [row["round"] for row in read_rounds(tmp_path) if row["phase"] == "train"]
    assert trained == list(range(1, ROUNDS + 1))
    assert not (tmp_path / "state").exists()
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "OK"


@pytest.mark.parametrize("asked", [10**9, 3 * 5])
def test_the_best_weights_by_validation_are_kept_through_an_interruption(
    asked: int, three_rounds: Study, folders: dict[str, Path], undisturbed: Result, tmp_path: Path
) -> None:
    spec = three_rounds.training.model_copy(update={"keep": "best", "rounds": 5, "learning_rate": 0.05})
    study = three_rounds.model_copy(update={"training": spec})
    grid = DyingGrid(folders)
    grid.left = asked
    try:
        result = Federation(grid, study, tmp_path).run()
    except Killed:
        result = Federation(LocalGrid(folders, first_node=5001), study, tmp_path).run()
    rows = read_rounds(tmp_path)
    losses = {row["round"] - 1: row["val_loss"] for row in rows if row["phase"] == "train" and row["round"] > 1}
    best = min(losses, key=lambda number: losses[number])
    assert [row["weights_of"] for row in rows if row["phase"] == "evaluate"] == [best]
    assert best < 4, "a later round validated worse"
    assert result.weights_hash != undisturbed.weights_hash


@pytest.mark.parametrize(
    ("kind", "keep"), [("safetensors", -1), ("json", -2), ("json", 0)], ids=["weights", "facts", "facts lost"]
)
def test_a_state_that_was_half_written_does_not_count(
    kind: str, keep: int, three_rounds: Study, folders: dict[str, Path], undisturbed: Result, tmp_path: Path
) -> None:
    grid = DyingGrid(folders)
    grid.left = 3 * 4  # in the third round
    with pytest.raises(Killed):
        Federation(grid, three_rounds, tmp_path).run()
    newest = max((tmp_path / "state").glob(f"*.{kind}"))
    newest.write_bytes(newest.read_bytes()[:keep])
    result = Federation(LocalGrid(folders), three_rounds, tmp_path).run()
    assert result.weights_hash == undisturbed.weights_hash


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_damaged_states_are_one_clear_error(
    kind: str, three_rounds: Study, folders: dict[str, Path], tmp_path: Path
) -> None:
    grid = DyingGrid(folders)
    grid.left = 3 * 4
    with pytest.raises(Killed):
        Federation(grid, three_rounds, tmp_path).run()
    for path in (tmp_path / "state").glob(f"*.{kind}"):
        path.write_bytes(bytes(path.stat().st_size))  # zeros, as a power cut leaves them
    with pytest.raises(ModelFileError, match="no state in it matches its checksum"):
        Federation(LocalGrid(folders), three_rounds, tmp_path).run()


def test_a_full_disk_of_the_coordinator_ends_the_run_and_refuses_nobody(
    three_rounds: Study, folders: dict[str, Path], tmp_path: Path
) -> None:
    study = three_rounds.model_copy(update={"aggregation": AggregationSpec(rule="median")})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(site: str, reply: Message) -> list[Message]:
        if (site, reply.metadata.message_type) == (SITES[-1], "train"):  # every site has answered
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        return [reply]

    try:
        with pytest.raises(RunFailed, match="File too large; it is the coordinator's own disk, no hospital's"):
            Federation(LocalGrid(folders, fill), study, tmp_path).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(row["refused"] for row in read_rounds(tmp_path))
    assert "own disk" in json.loads((tmp_path / "status.json").read_text())["reason"]
    assert Federation(LocalGrid(folders), study, tmp_path).run().status == "OK"


def test_the_folder_of_another_study_is_refused(three_rounds: Study, folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(three_rounds.model_copy(update={"seed": 9}).to_json())
    with pytest.raises(FederationError, match="holds a run of another study"):
        Federation(LocalGrid(folders), three_rounds, tmp_path).run()


@pytest.mark.parametrize(
    "said",
    [Error(code=8, reason="process ended"), RecordDict({"failure": ConfigRecord({"code": "ClientAppCrashed"})})],
    ids=["by Flower", "by the daemon"],
)
def test_a_site_whose_process_dies_is_asked_again(
    said: Any, three_rounds: Study, folders: dict[str, Path], undisturbed: Result, tmp_path: Path
) -> None:
    crashes = iter([True])

    def crash_once(site: str, reply: Message) -> list[Message]:
        if (site, reply.metadata.message_type) == ("H2", "train") and next(crashes, False):
            broken = Message(said, reply_to=unpack(pack(reply)))
            for name in ("reply_to_message_id", "src_node_id"):
                broken.metadata.__dict__[f"_{name}"] = getattr(reply.metadata, name)
            return [broken]
        return [reply]

    result = Federation(LocalGrid(folders, crash_once), three_rounds, tmp_path).run()
    assert (result.status, result.weights_hash) == ("OK", undisturbed.weights_hash)


def test_only_admitted_nodes_take_part_and_under_their_own_name(
    three_rounds: Study, folders: dict[str, Path], tmp_path: Path
) -> None:
    quick = three_rounds.model_copy(update={"deadline_seconds": 2.0})
    nodes = {"H1": 1001, "H2": 1003, "H5": 1002}  # H2 and H5 have changed places
    result = Federation(LocalGrid(folders), quick, tmp_path, nodes=nodes).run()
    assert read_rounds(tmp_path)[0]["refused"] == dict.fromkeys(("H2", "H5"), "it claims the name of another site")
    assert result.status == "DEGRADED"
    assert list(result.capabilities) == ["H1"]


def test_a_site_that_was_away_joins_when_it_is_back(
    three_rounds: Study, folders: dict[str, Path], tmp_path: Path
) -> None:
    class Comes(LocalGrid):
        def get_node_ids(self) -> Iterable[int]:
            done = [row for row in read_rounds(tmp_path) if row["phase"] == "train"]
            return [node for node in self.sites if node != 1002 or done]

    quick = three_rounds.model_copy(update={"deadline_seconds": 2.0})
    grid = Comes(folders)
    result = Federation(grid, quick, tmp_path, nodes={"H1": 1001, "H2": 1002, "H5": 1003}).run()
    trained = {row["round"]: row["contributors"] for row in read_rounds(tmp_path) if row["phase"] == "train"}
    assert trained == {1: ["H1", "H5"], 2: ["H1", "H2", "H5"], 3: ["H1", "H2", "H5"]}
    assert result.status == "DEGRADED"


def test_a_finished_run_leaves_what_people_read(three_rounds: Study, folders: dict[str, Path], tmp_path: Path) -> None:
    Federation(LocalGrid(folders), three_rounds, tmp_path).run(lambda result: finish(result, three_rounds, tmp_path))
    rows = json.loads((tmp_path / "metrics.json").read_text())
    assert {row["hospital"] for row in rows} == set(SITES)
    assert all(row["low"] <= row["value"] <= row["high"] and row["n"] > 0 for row in rows)
    assert "federated" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "DONE").read_text() == "OK\n"


def test_a_run_killed_while_its_report_is_written_trains_nothing_again(
    three_rounds: Study, folders: dict[str, Path], undisturbed: Result, tmp_path: Path
) -> None:
    def die(result: Result) -> None:
        raise Killed

    with pytest.raises(Killed):
        Federation(LocalGrid(folders), three_rounds, tmp_path).run(die)
    grid = LocalGrid(folders)
    result = Federation(grid, three_rounds, tmp_path).run(lambda result: finish(result, three_rounds, tmp_path))
    assert result.weights_hash == undisturbed.weights_hash
    asked = [row["phase"] for row in read_rounds(tmp_path)]
    assert asked == ["capability", "preprocess", "train", "train", "train", "capability", "evaluate"]
    assert (tmp_path / "DONE").exists()


@pytest.mark.parametrize("text", ["[]", "no json", '{"H1": "one"}'])
def test_a_damaged_list_of_nodes_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "nodes.json").write_text(text)
    with pytest.raises(ConfigError, match="expected a JSON object, site -> node"):
        admitted_nodes(tmp_path / "nodes.json")

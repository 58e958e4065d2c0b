from __future__ import annotations

from pathlib import Path

import pytest

from modaltune.errors import ConfigError
from simulation.run_folder import files_of, remembered, run_folder

SAME = {"seeds": [0]}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run"


def cut_off(out: Path, *files: str, begun: dict[str, list[int]] = SAME) -> None:
    """A run that writes some files and is interrupted."""

    def run() -> None:
        with run_folder(out, begun, print) as folder:
            for file in files:
                (folder / file).write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


def inside(out: Path, begun: dict[str, list[int]] = SAME) -> tuple[set[str], list[str]]:
    """What the next run finds in its folder, and what it says; it ends well."""
    said = list[str]()
    with run_folder(out, begun, said.append) as folder:
        return {path.name for path in folder.iterdir() if not path.name.startswith(".")}, said


def test_a_finished_run_is_replaced_and_survives_one_that_is_cut_off(out: Path) -> None:
    with run_folder(out, SAME, print) as folder:
        (folder / "first").write_text("")
        assert not out.exists()
    assert {path.name for path in out.iterdir()} == {"first", "DONE"}
    cut_off(out, "second")
    assert {path.name for path in out.iterdir()} == {"first", "DONE"}
    with run_folder(out, SAME, print) as folder:
        (folder / "third").write_text("")
    assert {path.name for path in out.iterdir()} == {"third", "DONE"}
    assert [path.name for path in out.parent.iterdir()] == ["run"]


def test_what_was_cut_off_before_a_federation_began_leaves_nothing(out: Path) -> None:
    cut_off(out, "study.json")
    assert list(out.parent.iterdir()) == []


def test_the_same_run_goes_on_with_what_was_cut_off_and_says_so(out: Path) -> None:
    cut_off(out, "weights.safetensors")
    found, said = inside(out)
    assert found == {"weights.safetensors"}
    assert said == [f"{out}: going on where it was interrupted"]
    assert {path.name for path in out.iterdir()} == {"weights.safetensors", "DONE"}


def test_another_run_begins_anew(out: Path) -> None:
    cut_off(out, "weights.safetensors")
    assert inside(out, {"seeds": [1]}) == (set(), [])


def test_two_processes_do_not_fill_one_folder(out: Path) -> None:
    with (
        run_folder(out, SAME, print),
        pytest.raises(ConfigError, match="another process works on it"),
        run_folder(out, SAME, print),
    ):
        pass
    assert (out / "DONE").is_file()


def test_what_hospitals_remember_stays_when_their_folders_are_written_anew(tmp_path: Path) -> None:
    state = tmp_path / "sites" / "H1" / ".state"
    state.mkdir(parents=True)
    (state / "000003.safetensors").write_text("moments")
    with remembered(tmp_path):
        assert not state.exists()
    assert (state / "000003.safetensors").read_text() == "moments"
    assert [path.name for path in tmp_path.iterdir()] == ["sites"]


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "rna.parquet").write_text("1")
    before = files_of(tmp_path)
    assert files_of(tmp_path) == before
    (tmp_path / "rna.parquet").write_text("12")
    assert files_of(tmp_path) != before

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from modaltune.storage import load_state, save_state
from tests.goldens import STANDARD, check_file, check_folder, full_precision_kernels

_FOLDER = Path(os.environ.get("MODALTUNE_GOLDENS", Path(__file__).parents[2] / "shared" / "goldens"))


def golden(stem: str) -> Path:
    path = _FOLDER / f"{stem}.safetensors"
    if not path.is_file():
        pytest.skip(f"no golden vectors: set MODALTUNE_GOLDENS to a folder with {stem}.safetensors")
    return path


@pytest.mark.parametrize("kernel", full_precision_kernels())
@pytest.mark.parametrize("stem", STANDARD)
def test_module_equals_golden_vectors(stem: str, kernel: str) -> None:
    golden(stem)
    name, error = max(check_file(_FOLDER, stem, kernel), key=lambda result: result[1])
    assert error <= 1, f"{stem}: {name} is off by {error:.3g} times its tolerance"


def test_absent_files_are_named_and_do_no_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (golden("projection"), golden("projection").with_suffix(".json")):
        shutil.copy(path, tmp_path)
    assert check_folder(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(STANDARD)
    assert lines[0].startswith("projection: ok")
    assert "longnet_small_h4: absent" in lines


def test_a_wrong_number_fails_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_state(golden("projection"))
    tensors["out"][0, 0] += 1e-2
    save_state(tmp_path / "projection.safetensors", tensors)
    shutil.copy(golden("projection").with_suffix(".json"), tmp_path)
    assert not check_folder(tmp_path)
    assert capsys.readouterr().out.startswith("projection: FAILED")


@pytest.mark.parametrize(
    "name", ["L7.pos_index", "L7.pos_embed", "L7.out_all_layers.cls", "L7.out_all_layers.pool", "L7.hidden.0"]
)
def test_every_stored_tensor_is_compared(name: str, tmp_path: Path) -> None:
    tensors = load_state(golden("longnet_small_h4"))
    tensors[name] = tensors[name] + 1
    save_state(tmp_path / "longnet_small_h4.safetensors", tensors)
    shutil.copy(golden("longnet_small_h4").with_suffix(".json"), tmp_path)
    worst, error = max(check_file(tmp_path, "longnet_small_h4", "naive"), key=lambda result: result[1])
    assert worst == name
    assert error > 1


def test_a_tensor_that_no_check_reads_fails_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_state(tmp_path / "projection.safetensors", load_state(golden("projection")) | {"mid.extra": torch.zeros(3)})
    shutil.copy(golden("projection").with_suffix(".json"), tmp_path)
    assert not check_folder(tmp_path)
    assert "mid.extra (no check reads it)" in capsys.readouterr().out


def test_a_tensor_too_many_fails_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_state(golden("modaltune_small_cat"))
    tensors["weights.final_norm.extra"] = torch.zeros(3)
    save_state(tmp_path / "modaltune_small_cat.safetensors", tensors)
    shutil.copy(golden("modaltune_small_cat").with_suffix(".json"), tmp_path)
    assert not check_folder(tmp_path)
    assert "final_norm.extra" in capsys.readouterr().out


def test_nothing_recognised_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not check_folder(tmp_path)
    save_state(tmp_path / "something.safetensors", {"x": torch.zeros(1)})
    assert not check_folder(tmp_path)
    assert "something: not recognised" in capsys.readouterr().out

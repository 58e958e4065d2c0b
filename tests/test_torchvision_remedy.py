"""The torchvision remedy, each time in a fresh interpreter because an import happens once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modaltune import _torchvision

ROOT = Path(__file__).resolve().parent.parent


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", source]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)


def test_timm_and_bert_import_with_the_remedy_and_detection_operators_still_refuse() -> None:
    result = run_python(
        "from modaltune import _torchvision; _torchvision.install()\n"
        "import timm, torch, torchvision.ops\n"
        "from transformers import BertModel\n"
        "try: torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        "except RuntimeError as error: assert 'custom C++ ops' in str(error)\n"
        "else: assert torchvision.extension._has_ops()"
    )
    assert result.returncode == 0, result.stderr


def test_without_the_remedy_the_failure_is_the_one_it_mends() -> None:
    result = run_python("import torchvision")
    if result.returncode == 0:
        pytest.skip("this torchvision loads as it is")
    assert "operator torchvision::nms does not exist" in result.stderr


def test_installing_twice_adds_one_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    _torchvision.install()
    once = list(sys.meta_path)
    _torchvision.install()
    assert sys.meta_path == once


@pytest.mark.parametrize("kind", ["cuda", "hip"])
def test_an_accelerator_build_of_torch_is_left_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, kind, "13.0")
    assert _torchvision._declare_missing_operators.__wrapped__() is None

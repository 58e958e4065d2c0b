"""Two hospitals with pathology reports join three without: one federation, real messages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from modaltune.encoders.text import text_encoder
from modaltune.federation.inputs import ModalitySpec, TextSpec
from modaltune.federation.study import Study
from server.rounds import Federation
from tests.integration.grids import LocalGrid, Passed, RecordingGrid

pytestmark = pytest.mark.integration
SECRET = "grey nodule of the upper lobe"


def with_reports(site: Path) -> None:
    cases = pd.read_parquet(site / "cases.parquet", columns=["case_id"])["case_id"][:30]
    text = [f"{SECRET}, number {row % 3}" for row in range(len(cases))]
    pd.DataFrame({"case_id": cases, "text": text}).to_csv(site / "reports.csv", index=False)
    toml = (site / "site.toml").read_text()
    (site / "site.toml").write_text(toml.replace("[paths]", '[paths]\nmodalities = {report = "reports.csv"}'))


def test_reports_stay_at_the_site_and_train_the_shared_encoder(
    study: Study, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    folders = {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in hospitals.items()}
    for name in ("H1", "H4"):
        with_reports(folders[name])
    report = ModalitySpec(name="report", text=TextSpec(sha256=text_encoder().sha256), width=384)
    passed: list[Passed] = []
    grid = RecordingGrid(LocalGrid(folders), passed)
    result = Federation(grid, study.model_copy(update={"modalities": (report,)}), tmp_path / "run").run()
    holders = {name for name, found in result.capabilities.items() if "report" in found.modalities}
    assert holders == {"H1", "H4"}
    encoder = "modaltune.vector_encoders.report.0.weight"
    replies = [m.content for m in passed if m.kind == "train" and not m.down]
    counts = sorted(int(reply.metric_records["examples"][encoder]) for reply in replies[: len(folders)])
    assert counts[:3] == [0, 0, 0]
    assert counts[3] > 0
    assert not [m.kind for m in passed if SECRET.encode() in m.data]

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from modaltune.errors import ConfigError, DataError, DeviceError, ModelFileError
from modaltune.federation.study import Study
from modaltune.local import LocalTraining
from modaltune.models.learner import load_model
from modaltune.models.modaltune import trainable_state
from modaltune.storage import digest_state
from simulation.study import read_sites
from simulation.synthetic import build_synthetic
from tests.integration.helpers import make_study, run_script, script, vocabulary


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_synthetic(tmp_path_factory.mktemp("cohort"), cases=120)[0]


@pytest.fixture(scope="module")
def study(site: Path) -> Study:
    drafted = make_study(read_sites([site], vocabulary(), "unused"), site.parent / "gene_sets.gmt")
    training = drafted.training.model_copy(update={"rounds": 4})
    return drafted.model_copy(
        update={"training": training, "site_cases": {"H1": 500, "H2": 500}, "roster": ("H1", "H2")}
    )


@pytest.fixture(scope="module")
def whole(study: Study, site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LocalTraining]:
    out = tmp_path_factory.mktemp("whole")
    training = LocalTraining(study, site, out, checks=5)
    training.run()
    return out, training


def rows(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_training_leaves_the_model_with_the_best_validation_loss(whole: tuple[Path, LocalTraining]) -> None:
    out, training = whole
    found = rows(out)
    assert found[-1]["step"] == training.steps
    best = min(found, key=lambda row: row["val_loss"])
    assert (training.numbers.best_loss, training.numbers.best_step) == (best["val_loss"], best["step"])
    learner, study, _ = load_model(out / "model")
    assert digest_state(trainable_state(learner)) == digest_state(training.best)
    assert study.roster == ("H1",)
    assert study.site_cases == {"H1": 500}
    assert not (out / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("checks_before", [1, 3])
def test_an_interrupted_training_that_goes_on_gives_the_same_model(
    checks_before: int, whole: tuple[Path, LocalTraining], study: Study, site: Path, tmp_path: Path
) -> None:
    seen = 0

    def kill(step: int, steps: int, row: Mapping[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if seen == checks_before:
            raise Killed

    first = LocalTraining(study, site, tmp_path, checks=5)
    per_epoch = first.steps // study.training.rounds
    assert (checks_before * first.interval) % per_epoch, "the test needs a checkpoint in the middle of an epoch"
    with pytest.raises(Killed):
        first.run(kill)
    assert not (tmp_path / "model").exists()
    LocalTraining(study, site, tmp_path, checks=5).run()
    name = Path("model") / "weights.safetensors"
    assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()
    assert rows(tmp_path) == rows(whole[0])


def test_training_stops_after_checks_without_a_better_loss(
    study: Study, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.5, 0.1])
    monkeypatch.setattr("modaltune.local.loss_of", lambda *_: next(losses))
    training = LocalTraining(study, site, tmp_path, checks=5, patience=2)
    training.run()
    assert [row["val_loss"] for row in rows(tmp_path)] == [3.0, 2.0, 2.5, 2.5]
    assert training.numbers.best_step == 2 * training.interval


def interrupted(study: Study, site: Path, out: Path) -> None:
    def kill(step: int, steps: int, row: Mapping[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        LocalTraining(study, site, out, checks=5).run(kill)


def test_a_checkpoint_of_another_study_is_refused(study: Study, site: Path, tmp_path: Path) -> None:
    interrupted(study, site, tmp_path)
    with pytest.raises(ConfigError, match="belongs to another study or to other data"):
        LocalTraining(study.model_copy(update={"seed": 9}), site, tmp_path).run()


def test_a_checkpoint_of_other_labels_is_refused(study: Study, site: Path, tmp_path: Path) -> None:
    """Numbers and scales may all be the same: the candidates are, and expression is."""
    interrupted(study, site, tmp_path / "out")
    cases = pd.read_parquet(site / "cases.parquet")
    corrected = shutil.copytree(site, tmp_path / site.name)
    names = cases["diagnosis"].dropna().unique()[:2]
    cases["diagnosis"] = cases["diagnosis"].replace(dict(zip(names, names[::-1], strict=True)))
    cases.to_parquet(corrected / "cases.parquet")
    with pytest.raises(ConfigError, match="belongs to another study or to other data"):
        LocalTraining(study, corrected, tmp_path / "out").run()


def test_a_truncated_checkpoint_is_one_clear_line(study: Study, site: Path, tmp_path: Path) -> None:
    interrupted(study, site, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="not a complete safetensors file"):
        LocalTraining(study, site, tmp_path).run()


def test_the_device_of_the_site_is_taken(
    study: Study, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    own = shutil.copytree(site, tmp_path / "site")
    with (own / "site.toml").open("a") as file:
        file.write('[compute]\ndevice = "cuda"\n')
    with pytest.raises(DeviceError, match="device 'cuda': this machine has 0 GPU"):
        LocalTraining(study, own, tmp_path / "out")


def test_the_frozen_beginning_is_computed_once_and_kept_at_the_site(study: Study, site: Path, tmp_path: Path) -> None:
    own = shutil.copytree(site, tmp_path / "site")
    late = study.model_copy(
        update={
            "model": study.model.model_copy(update={"groups": ((1, 1),)}),
            "training": study.training.model_copy(update={"rounds": 1}),
        }
    )
    training = LocalTraining(late, own, tmp_path / "out", checks=1)
    training.run()
    with_slides = [case for case in (*training.train, *training.validation) if case.patch_count]
    assert len(list((own / ".state" / "prefix").iterdir())) == len(with_slides) > 0


def test_a_finished_training_is_not_overwritten(whole: tuple[Path, LocalTraining], study: Study, site: Path) -> None:
    with pytest.raises(ConfigError, match="holds a finished training; choose another --out"):
        LocalTraining(study, site, whole[0]).run()


def test_expression_without_the_studys_genes_is_refused(study: Study, site: Path, tmp_path: Path) -> None:
    other = study.model_copy(update={"gene_sets": {"SET": ("A1", "A2", "A3")}})
    with pytest.raises(DataError, match="expression has 0 of the 3 genes"):
        LocalTraining(other, site, tmp_path)


def test_a_site_without_a_task_of_the_study_is_refused(study: Study, site: Path, tmp_path: Path) -> None:
    other = study.model_copy(update={"tasks": (study.tasks[0].model_copy(update={"name": "grade"}),)})
    with pytest.raises(DataError, match="labels no task of study small"):
        LocalTraining(other, site, tmp_path)


def test_two_processes_train_what_one_trains(study: Study, site: Path, tmp_path: Path) -> None:
    quiet = study.model.model_copy(update={"gene_dropout": 0.0, "expression_dropout": 0.0, "drop_path": 0.0})
    (tmp_path / "study.json").write_text(study.model_copy(update={"model": quiet}).to_json())
    arguments = ["train", str(site), "--study", str(tmp_path / "study.json"), "--json", "--out"]
    one = run_script("modaltune", *arguments, tmp_path / "one")
    assert one.code == 0, one.err
    two = run_script(
        "torchrun",
        "--standalone",
        "--nproc-per-node",
        2,
        "--no-python",
        script("modaltune"),
        *arguments,
        tmp_path / "two",
    )
    assert two.code == 0, two.err
    alone, together = json.loads(one.out), json.loads(two.out)
    assert together["steps"] == alone["steps"]
    assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-2)
    first, second = (rows(tmp_path / name)[0]["val_loss"] for name in ("one", "two"))
    assert second == pytest.approx(first, rel=1e-4)

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from modaltune.errors import ConfigError
from modaltune.tasks import vocabulary
from modaltune.tasks.vocabulary import configs_folder
from simulation.studies.cells import Cell, expand, select
from simulation.studies.features import missing
from simulation.studies.spec import StudyFile, load_study_file

SETTINGS = {"synthetic.toml", "tcga.toml"}
READY = sorted(path.name for path in (configs_folder() / "studies").glob("*.toml") if path.name not in SETTINGS)

GRID = """
name = "grid"
seeds = [0, 1]
methods = ["local"]
[data]
kind = "synthetic"
[training]
rounds = 3
[[axes]]
name = "training.wire"
values = ["fp16", "int8"]
[[axes]]
name = "optimiser"
[axes.variants]
FedAvg = {}
FedProx = { training.proximal = 0.01 }
"""


def study(folder: Path, text: str = GRID) -> StudyFile:
    path = folder / "study.toml"
    path.write_text(text)
    return load_study_file(path)


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    return expand(study(tmp_path))


def test_a_grid_is_the_product_of_its_axes_and_seeds_with_seeds_innermost(cells: list[Cell]) -> None:
    assert [cell.name for cell in cells] == [
        f"wire={wire},optimiser={optimiser},seed={seed}"
        for wire in ("fp16", "int8")
        for optimiser in ("FedAvg", "FedProx")
        for seed in (0, 1)
    ]


def test_settings_of_axes_are_added_to_those_of_the_file_and_of_the_kind_of_data(cells: list[Cell]) -> None:
    last = cells[-1].settings
    assert last["training"] == {"rounds": 3, "learning_rate": 4e-3, "wire": "int8", "proximal": 0.01}
    assert last["slides"] == {"standardise": "feature", "max_patches": 24}
    assert "proximal" not in cells[0].settings["training"]


def test_the_federation_itself_is_always_scored(cells: list[Cell]) -> None:
    assert cells[0].methods == ("federated", "local")


def test_an_axis_of_data_changes_the_data(tmp_path: Path) -> None:
    text = GRID.partition("[[axes]]")[0] + '[[axes]]\nname = "data.leave_out"\nvalues = [[], ["H1", "H2"]]\n'
    found = expand(study(tmp_path, text))
    assert [cell.spec.leave_out for cell in found] == [(), (), ("H1", "H2"), ("H1", "H2")]
    assert [cell.name for cell in found[::2]] == ["leave_out=none,seed=0", "leave_out=H1-H2,seed=0"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("rounds = 3", "rounds = 4"), ('["local"]', '["pooled"]'), ('"synthetic"', '"synthetic"\ncases = 100')],
)
def test_a_digest_follows_what_the_numbers_depend_on(tmp_path: Path, cells: list[Cell], old: str, new: str) -> None:
    changed = expand(study(tmp_path, GRID.replace(old, new)))
    assert not {cell.digest for cell in cells} & {cell.digest for cell in changed}


def test_a_digest_follows_the_texts_of_the_labels(
    tmp_path: Path, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [cell.digest for cell in cells]
    folder = shutil.copytree(configs_folder(), tmp_path / "configs")
    monkeypatch.setattr(vocabulary, "configs_folder", lambda: folder)
    assert [cell.digest for cell in cells] == before
    labels = folder / "labels" / "synthetic.toml"
    labels.write_text("# a comment\n" + labels.read_text())
    assert [cell.digest for cell in cells] == before
    labels.write_text(labels.read_text().replace("{text}", "{text}, seen"))
    assert not {cell.digest for cell in cells} & set(before)


def test_a_digest_ignores_titles_trackers_and_what_is_shown(tmp_path: Path, cells: list[Cell]) -> None:
    more = 'title = "T"\nnote = "N"\ntrackers = ["tensorboard"]\n' + GRID + '[show]\nhospitals = ["H1"]\n'
    assert [cell.digest for cell in expand(study(tmp_path, more))] == [cell.digest for cell in cells]


def test_all_digests_of_a_grid_differ(cells: list[Cell]) -> None:
    assert len({cell.digest for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("pattern", "count"), [(None, 8), ("wire=int8*", 4), ("seed=0", 4), ("seed=0,wire=int8", 2), (READY[0], 0)]
)
def test_cells_are_selected_by_pattern_or_choice(cells: list[Cell], pattern: str | None, count: int) -> None:
    if count:
        assert len(select(cells, pattern)) == count
    else:
        with pytest.raises(ConfigError, match=r"matches no cell; the first of 8 is 'wire=fp16"):
            select(cells, pattern)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [0, 1]", "seed = 0", r"unknown key 'seed'; known keys: name, like, title"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "the same seed is given twice"),
        ('["local"]', '["lokal"]', "unknown method 'lokal'; choose from federated, pooled"),
        ('kind = "synthetic"', 'kind = "synthetic"\ncase = 9', r"\[data\] unknown key 'case'; known keys: kind, cases"),
        ('kind = "synthetic"', 'kind = "tcga"', "needs at least one"),
        ('kind = "synthetic"', 'kind = "tcga"\ncohorts = ["BRAC"]', "unknown cohort 'BRAC'; choose from BLCA"),
        ('kind = "synthetic"', 'kind = "synthetic"\nskew = 0.5', "give their number too"),
        ('"fp16", "int8"', '"fp16", "int7"', r"training.wire = int7, optimiser = FedAvg: \[training\] wire: Input"),
        ("training.wire", "training.wier", r"\[training\] unknown key 'wier'; known keys: objective"),
        ("training.wire", "trainings.wire", r"axis sets 'trainings'; the tables are data, slides, model"),
        ('name = "optimiser"', 'name = "steps"', "axis steps: a column of the results has this name"),
        ("training.wire", "wire", "axis wire: values are of one setting"),
        ('"fp16", "int8"', '"fp16", "fp16"', "two cells are called 'wire=fp16,optimiser=FedAvg,seed=0'"),
        ("rounds = 3", "rounds = ", "not valid TOML"),
        ("[training]", "[slides]\nwide = 3\n[training]", r"\[slides\] unknown key 'wide'"),
    ],
)
def test_every_mistake_in_a_study_file_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        expand(study(tmp_path, GRID.replace(old, new)))
    assert "\n" not in str(error.value)


def test_an_absent_study_file_names_the_ready_made_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such study file; .*: baselines, communication, disjoint-tasks"):
        load_study_file(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("name", READY)
def test_every_ready_made_study_expands(name: str) -> None:
    described = load_study_file(Path(name.removesuffix(".toml")))
    assert described.name == name.removesuffix(".toml")
    assert described.note
    assert expand(described)


@pytest.mark.parametrize("name", [name for name in READY if name.startswith("paper")])
def test_the_papers_protocol_has_the_published_settings_where_there_is_a_switch(name: str) -> None:
    published = {
        "residual": "reference",
        "gamma": 0,
        "drop_path": 0.1,
        "extra_extractors": 2,
        "width_ratio": 0.25,
        "heads": 12,
        "output_width": 256,
        "centre_texts": False,
        "frozen_dropout": 0.25,
        "gene_encoder": "paper",
        "gene_latent": 256,
        "gene_depth": 3,
        "gene_tokens": 64,
        "gene_dropout": 0.25,
        "expression_dropout": 0,
    }
    if name.endswith("-titan.toml"):
        published |= {"drop_path": 0.2, "token_join": "cat", "groups": [[0, 1], [2, 3], [4, 5]]}
    for cell in expand(load_study_file(Path(name.removesuffix(".toml")))):
        assert published.items() <= cell.settings["model"].items()
        assert {"objective": "distillation", "clip_norm": 0, "modality_dropout": 0}.items() <= cell.settings[
            "training"
        ].items()


def test_a_study_of_cohorts_without_their_folder_does_not_start() -> None:
    assert missing(expand(load_study_file(Path("single-cohort"))), None) == [
        "the folder with the tables of the cohorts: --data DIR"
    ]


@pytest.mark.parametrize("name", [name for name in READY if name.startswith("paper")])
def test_the_papers_protocol_says_what_is_absent(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path / "encoders"))
    lacking = missing(expand(load_study_file(Path(name.removesuffix(".toml")))), tmp_path)
    features, encoder = ("conch", "titan") if name.endswith("-titan.toml") else ("gigapath", "longnet")
    assert {"BRCA/clinical.parquet", f"BRCA/features/{features}/*.h5"} <= set(lacking)
    assert any(line.startswith(f"the weights of slide encoder {encoder!r}") for line in lacking)


@pytest.mark.parametrize("name", ["paper-single-cancer", "paper-pan-cancer", "paper-ood"])
def test_the_protocol_with_titan_differs_in_what_titan_asks_for_only(name: str) -> None:
    ours, theirs = (expand(load_study_file(Path(file))) for file in (f"{name}-titan", name))
    assert [cell.name for cell in ours] == [cell.name for cell in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.methods, one.data) == (other.methods, {**other.data, "features": "conch"})
        slides = {"encoder": "titan", "depth": 6, "max_patches": 15000}
        model = {"groups": [[0, 1], [2, 3], [4, 5]], "drop_path": 0.2, "token_join": "cat"}
        changed = {"slides": other.settings["slides"] | slides, "model": other.settings["model"] | model}
        assert one.settings == {**other.settings, **changed}


def test_a_study_that_is_like_another_changes_what_it_names(tmp_path: Path) -> None:
    study(tmp_path)
    like = f'name = "more"\nlike = "{tmp_path / "study.toml"}"\n[training]\nwarmup = 0.1\n'
    (tmp_path / "more.toml").write_text(like)
    found = load_study_file(tmp_path / "more.toml")
    assert (found.name, found.methods, found.training) == ("more", ("local",), {"rounds": 3, "warmup": 0.1})
    (tmp_path / "again.toml").write_text(f'name = "again"\nlike = "{tmp_path / "more.toml"}"\n')
    with pytest.raises(ConfigError, match="is like another one itself"):
        load_study_file(tmp_path / "again.toml")

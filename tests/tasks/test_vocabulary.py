from __future__ import annotations

from pathlib import Path

import pytest

from modaltune.errors import ConfigError
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary

SHIPPED = sorted((configs_folder() / "labels").glob("*.toml"))
TASK = """name = "v"
[tasks.grade]
kind = "ordinal"
template = "Grade: {text}."
positive = ["high"]
[tasks.grade.labels]
low = "calm"
high = "wild"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "labels" / "v.toml"
    file.parent.mkdir()
    file.write_text(TASK)
    return file


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_vocabulary_gives_every_label_a_text_of_its_own(shipped: Path) -> None:
    tasks = load_vocabulary(shipped)
    assert {"diagnosis", "survival"} <= {task.name for task in tasks}
    for task in tasks:
        texts = [label.text for label in task.labels] or list(task.bins)
        prompts = [task.template.format(text=text) for text in texts]
        assert len(prompts) == len(set(prompts)) >= 2
        assert bool(task.positive) == (task.kind == "ordinal")


def test_the_vocabularies_of_all_cohorts_are_shipped() -> None:
    names = {"blca", "brca", "coadread", "gbmlgg", "nsclc", "rcc", "synthetic"}
    assert {file.stem for file in SHIPPED} >= names


@pytest.mark.parametrize("cohort", ["blca", "brca", "coadread", "nsclc", "rcc"])
def test_carcinomas_can_be_staged_by_tumour_glands_and_metastases(cohort: str) -> None:
    tasks = {task.name: task.values for task in load_vocabulary(configs_folder() / "labels" / f"{cohort}.toml")}
    assert tasks["t_stage"] == ("T1", "T2", "T3", "T4")
    assert tasks["n_stage"][:3] == ("N0", "N1", "N2")
    assert tasks["m_stage"] == ("M0", "M1")


def test_labels_keep_the_order_of_the_file(path: Path) -> None:
    (task,) = load_vocabulary(path)
    assert task.values == ("low", "high")
    assert task.positive == ("high",)


def test_tasks_can_be_chosen() -> None:
    chosen = load_vocabulary(configs_folder() / "labels" / "brca.toml", ["survival", "diagnosis"])
    assert [task.name for task in chosen] == ["diagnosis", "survival"]


def test_an_unknown_vocabulary_lists_the_known_ones(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"w\.toml: no such label vocabulary; known in labels/: v"):
        load_vocabulary(path.with_name("w.toml"))


def test_an_unknown_task_lists_the_known_ones(path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task 'stage'; this vocabulary has grade"):
        load_vocabulary(path, ["stage"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "v"', "name = ", "not valid TOML"),
        ('kind = "ordinal"', 'kind = "cardinal"', "task grade: kind: "),
        ("{text}", "text", r"template must contain \{text\}"),
        ('positive = ["high"]', 'positive = ["highest"]', "positive must name some of its labels"),
        ('positive = ["high"]', 'positive = ["high", "low"]', "positive must name some of its labels"),
        ('positive = ["high"]', "", "positive must name some of its labels, and not all"),
        ('positive = ["high"]', "positive = []", "positive must name some of its labels, and not all"),
        ('low = "calm"', 'low = "wild"', "two labels have the same text"),
        (TASK, 'tasks = "x"', r"tasks must be tables \[tasks.NAME\]"),
        (TASK, "[tasks]\na = 1", r"\[tasks\] a must be a table \[tasks.a\]"),
        ('low = "calm"', "", "needs at least two labels"),
        ("positive", "positives", "positives: Extra inputs"),
        ("[tasks.grade.labels]", "labels = 3\n[other]", "must be a table of value = text"),
    ],
)
def test_a_malformed_vocabulary_is_one_clear_line(old: str, new: str, message: str, path: Path) -> None:
    path.write_text(TASK.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load_vocabulary(path)
    assert str(caught.value).startswith("v.toml: ")
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_is_not_utf_8_is_refused(path: Path) -> None:
    path.write_bytes(TASK.replace("calm", "ruhig, gutmütig").encode("latin-1"))
    with pytest.raises(ConfigError, match=r"v\.toml: not UTF-8 text"):
        load_vocabulary(path)


def test_a_survival_task_has_no_labels(path: Path) -> None:
    bins = '[tasks.survival]\nkind = "survival"\ntemplate = "{text}"\nbins = ["bad", "good"]\n'
    path.write_text(f'{bins}[tasks.survival.labels]\ndead = "dead"\n')
    with pytest.raises(ConfigError, match="a survival task has bins, not labels"):
        load_vocabulary(path)


def test_a_survival_task_needs_bins(path: Path) -> None:
    path.write_text('[tasks.survival]\nkind = "survival"\ntemplate = "{text}"\nbins = ["only"]\n')
    with pytest.raises(ConfigError, match="at least two bins"):
        load_vocabulary(path)

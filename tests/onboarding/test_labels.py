from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

import modaltune.cli
from modaltune.data.site import load_site, read_site_config
from modaltune.doctor.site_files import SiteFiles
from modaltune.encoders.text import text_encoder
from modaltune.errors import ConfigError, LabelError
from modaltune.federation.task import Label, TaskSpec
from modaltune.onboarding.commands import summary
from modaltune.onboarding.labels import LEAST_LIKE, LocalCode, _match, accepted, asked, local_codes, ranked, store
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary

DUCTAL, LOBULAR = "invasive ductal carcinoma", "invasive lobular carcinoma"
CODES = [
    DUCTAL,
    "Invasive Lobular Carcinoma",
    "Invasive-ductal  CARCINOMA.",
    "lobular type",
    "8500/3",
    "8500/3",
    "1",
    None,
]
TOML = """# our hospital
name = "H1"           # as agreed
tasks = ["diagnosis"]

[paths]
cases = "cases.csv"
expression = "expression.csv"

[labels.diagnosis]    # by Dr. B
"1" = "" # unknown

[policy]
min_cell = 5
"""


@pytest.fixture(scope="module")
def tasks() -> tuple[TaskSpec, ...]:
    return load_vocabulary(configs_folder() / "labels" / "brca.toml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ids = [f"P{number}" for number in range(len(CODES))]
    pd.DataFrame({"case_id": ids, "diagnosis": CODES}).to_csv(tmp_path / "cases.csv", index=False)
    pd.DataFrame({"case_id": ids, "TP53": 1.0}).to_csv(tmp_path / "expression.csv", index=False)
    (tmp_path / "site.toml").write_text(TOML)
    return tmp_path


@pytest.fixture
def codes(folder: Path, tasks: tuple[TaskSpec, ...]) -> list[LocalCode]:
    return local_codes(SiteFiles(folder), tasks)


def test_only_what_neither_vocabulary_nor_site_file_knows_is_a_code(codes: list[LocalCode]) -> None:
    assert {(code.code, code.cases, code.match) for code in codes} == {
        ("8500/3", 2, None),
        ("lobular type", 1, None),
        ("Invasive-ductal  CARCINOMA.", 1, DUCTAL),
    }


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("her2 +", "HER2+"),
        ("HER2-", None),
        ("HER2 \u2212", None),
        ("HER2 (-)", None),
        ("HER2+?", None),
        ("> 50%", ">50 %"),
        ("<50%", None),
        (">=50%", None),
        ("Grade 1 - low", "grade-1 (low)"),
        ("grade 1-2, low", None),
        ("12 cm", None),
        ("1,2 cm", None),
    ],
)
def test_signs_that_tell_values_apart_are_not_punctuation(code: str, match: str | None) -> None:
    values = ("HER2+", ">50 %", "grade-1 (low)", "1.2 cm")
    labels = tuple(Label(value=value, text=value) for value in values)
    assert _match(code, TaskSpec(name="marker", kind="nominal", template="{text}", labels=labels)) == match


def test_like_values_are_suggested_and_numbers_get_none(codes: list[LocalCode], tasks: tuple[TaskSpec, ...]) -> None:
    found = {code.code: code for code in ranked(codes, tasks, text_encoder())}
    assert [value for value, _ in found["lobular type"].suggestions] == [LOBULAR]
    assert found["8500/3"].suggestions == ()
    assert found["Invasive-ductal  CARCINOMA."].suggestions == ()


@pytest.mark.parametrize(
    ("code", "suggested"), [("IDC", []), ("NST", []), ("Infiltrating duct carcinoma, NOS", [DUCTAL, LOBULAR])]
)
def test_the_likeliest_comes_first_and_an_abbreviation_gets_no_suggestion_by_chance(
    code: str, suggested: list[str], tasks: tuple[TaskSpec, ...]
) -> None:
    (found,) = ranked([LocalCode("diagnosis", code, 1)], tasks, text_encoder())
    assert [value for value, _ in found.suggestions] == suggested
    scores = [score for _, score in found.suggestions]
    assert scores == sorted(scores, reverse=True)
    assert all(LEAST_LIKE <= score <= 1 for score in scores)


def test_local_codes_enter_no_cache(
    codes: list[LocalCode], tasks: tuple[TaskSpec, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODALTUNE_CACHE", str(tmp_path / "cache"))
    ranked(codes, tasks, text_encoder())
    diagnosis = next(task for task in tasks if task.name == "diagnosis")
    assert len(list((tmp_path / "cache" / "text").iterdir())) == 2 * len(diagnosis.labels)


CODE = LocalCode("diagnosis", "lobular type", 3, None, ((LOBULAR, 0.8), (DUCTAL, 0.5)))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [("y", LOBULAR), ("ny", DUCTAL), ("nn", None), ("s", None), ("ns", None), ("u", "")],
)
def test_a_person_decides_suggestion_by_suggestion(answers: str, expected: str | None) -> None:
    given: Iterator[str] = iter(answers)
    found = asked([CODE], lambda _: next(given))
    assert found == ({} if expected is None else {"diagnosis": {"lobular type": expected}})
    assert next(given, None) is None


def test_a_code_without_suggestions_is_not_asked_about() -> None:
    assert asked([LocalCode("diagnosis", "8500/3", 2)], lambda question: pytest.fail(question)) == {}


def test_storing_keeps_every_comment_and_the_site_loads(folder: Path, tasks: tuple[TaskSpec, ...]) -> None:
    store(SiteFiles(folder), {"diagnosis": {"8500/3": DUCTAL, 'a "quoted" code': LOBULAR}})
    text = (folder / "site.toml").read_text()
    kept = [line for line in TOML.splitlines() if line]
    assert [line for line in text.splitlines() if line in kept] == kept
    assert len(text.splitlines()) == len(TOML.splitlines()) + 2
    assert read_site_config(folder).labels["diagnosis"] == {"1": "", "8500/3": DUCTAL, 'a "quoted" code': LOBULAR}


def test_a_site_file_without_labels_gets_the_table(folder: Path) -> None:
    (folder / "site.toml").write_text('name = "H1" # kept\ntasks = ["diagnosis", "stage"]\n')
    store(SiteFiles(folder), {"diagnosis": {"a": DUCTAL}, "stage": {"x": ""}})
    text = (folder / "site.toml").read_text()
    assert text.startswith('name = "H1" # kept\n')
    assert tomllib.loads(text)["labels"] == {"diagnosis": {"a": DUCTAL}, "stage": {"x": ""}}


WRONG = {
    "8500/3": "expected CODE=VALUE",
    "=carcinoma": "expected CODE=VALUE",
    "9999=" + DUCTAL: "no unmapped label '9999'",
    "8500/3=ductal": f"the vocabulary has '{DUCTAL}', '{LOBULAR}'",
}


@pytest.mark.parametrize("pair", WRONG)
def test_a_confirmation_names_a_code_and_a_value_that_exist(
    pair: str, codes: list[LocalCode], tasks: tuple[TaskSpec, ...]
) -> None:
    with pytest.raises(ConfigError) as raised:
        accepted([pair], codes, tasks)
    assert WRONG[pair] in str(raised.value)


def test_a_code_may_contain_an_equals_sign_and_an_empty_value_is_unlabelled(tasks: tuple[TaskSpec, ...]) -> None:
    codes = [LocalCode("diagnosis", "a=b", 1), LocalCode("diagnosis", "c", 1)]
    assert accepted([f"a=b={DUCTAL}", "c="], codes, tasks) == {"diagnosis": {"a=b": DUCTAL, "c": ""}}


def test_a_code_that_fits_two_tasks_is_not_guessed(tasks: tuple[TaskSpec, ...]) -> None:
    codes = [LocalCode("diagnosis", "9", 1), LocalCode("stage", "9", 1)]
    with pytest.raises(ConfigError, match="fits diagnosis and stage"):
        accepted(["9="], codes, tasks)


def test_a_column_of_free_text_is_no_column_of_codes(folder: Path, tasks: tuple[TaskSpec, ...]) -> None:
    ids = [f"P{number}" for number in range(80)]
    pd.DataFrame({"case_id": ids, "diagnosis": [f"note on {case}" for case in ids]}).to_csv(folder / "cases.csv")
    with pytest.raises(LabelError, match="80 different labels") as raised:
        local_codes(SiteFiles(folder), tasks)
    assert "P1" not in str(raised.value)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["modaltune", "labels", str(folder), *arguments])
        with pytest.raises(SystemExit) as ended:
            modaltune.cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_nothing_is_written_without_apply(run: Run, folder: Path) -> None:
    code, out, _ = run("--cohort", "BRCA", "--json")
    document = json.loads(out)
    assert (code, document["stored"], document["unmapped"]) == (0, False, 2)
    assert document["confirmed"] == {"diagnosis": {"Invasive-ductal  CARCINOMA.": DUCTAL}}
    assert (folder / "site.toml").read_text() == TOML


def test_what_is_confirmed_is_stored_and_the_rest_is_left(run: Run, folder: Path, tasks: tuple[TaskSpec, ...]) -> None:
    code, out, err = run("--cohort", "BRCA", "--apply", "--accept", f"8500/3={DUCTAL}")
    assert (code, out) == (0, "")
    assert "2 codes written to site.toml; 1 not mapped" in err
    assert "lobular type" not in (folder / "site.toml").read_text()
    run("--cohort", "BRCA", "--apply", "--accept", f"lobular type={LOBULAR}")
    labels = {task.name: task.values for task in tasks if task.labels}
    mapped = load_site(folder, split_salt="s", labels=labels).cases["diagnosis"].tolist()
    assert mapped == [DUCTAL, LOBULAR, DUCTAL, LOBULAR, DUCTAL, DUCTAL, None, None]


@pytest.mark.parametrize("arguments", [(), ("--cohort", "BRCA", "--study", "study.toml"), ("--cohort", "LUAD")])
def test_a_vocabulary_must_be_named_once_and_exist(arguments: tuple[str, ...], run: Run) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("confirmed", "left", "apply", "said"),
    [
        ({}, 0, False, "nothing to map"),
        ({}, 3, False, "nothing to write; 3 not mapped: --accept"),
        ({"stage": {"1": "I"}}, 0, False, "1 code to write: run again with --apply; 0 not mapped"),
        ({"stage": {"1": "I", "2": "II"}}, 1, True, "2 codes written to site.toml; 1 not mapped: --accept"),
    ],
)
def test_the_summary_says_what_is_left_to_do(
    confirmed: dict[str, dict[str, str]], left: int, apply: bool, said: str
) -> None:
    assert summary(confirmed, left, apply).startswith(said)


@pytest.mark.parametrize("code", ["unknown", "Not reported", "N/A", "X"])
def test_a_code_for_what_is_not_known_is_unlabelled_and_never_like_a_value(
    code: str, tasks: tuple[TaskSpec, ...]
) -> None:
    assert _match(code, next(task for task in tasks if task.kind == "ordinal")) == ""

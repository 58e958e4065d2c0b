from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from modaltune.errors import ConfigError
from modaltune.federation.study import Study
from modaltune.storage import canonical_json, digest_text

TOML = f"""name = "by-hand"
roster = ["H1", "H2"]
[[tasks]]
name = "survival"
kind = "survival"
template = "Prognosis: {{text}}."
bins = ["bad", "good"]
[slides]
in_width = 8
sha256 = "{"a" * 64}"
[text]
sha256 = "{"b" * 64}"
[training]
rounds = 3
"""


def variants(part: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a study, nested ones too, with the part in which only that field differs."""
    for name, field in type(part).model_fields.items():
        value, here = getattr(part, name), f"{path}{name}"
        if isinstance(value, BaseModel):
            yield from ((inner, part.model_copy(update={name: new})) for inner, new in variants(value, f"{here}."))
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for inner, new in variants(value[0], f"{here}.0."):
                yield inner, part.model_copy(update={name: (new, *value[1:])})
            yield f"{here} (order)", part.model_copy(update={name: value[::-1]})
        else:
            yield here, part.model_copy(update={name: another(value, field.annotation)})


def another(value: Any, annotation: Any) -> Any:
    if get_origin(annotation) is Literal and len(get_args(annotation)) > 1:
        return next(choice for choice in get_args(annotation) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return value[:-1] if value else ("new",)
    return {**value, "NEW": ("G00",)} if isinstance(value, dict) else f"{value}x"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_the_digest_changes_with_every_field(tiny_study: Study) -> None:
    digests = {name: study.digest for name, study in variants(tiny_study)}
    assert len(digests) > 50, "the fields of nested parts count too"
    assert tiny_study.digest not in digests.values()
    assert len(set(digests.values())) == len(digests)


def test_the_digest_is_the_hash_of_the_canonical_json(tiny_study: Study) -> None:
    assert tiny_study.digest == digest_text(tiny_study.to_json())
    assert tiny_study.to_json() == canonical_json(json.loads(tiny_study.to_json()))


def test_the_digest_does_not_depend_on_the_order_in_which_gene_sets_are_given(tiny_study: Study) -> None:
    reversed_sets = dict(reversed(tiny_study.gene_sets.items()))
    assert tiny_study.model_copy(update={"gene_sets": reversed_sets}).digest == tiny_study.digest


def test_a_study_survives_json(tiny_study: Study) -> None:
    again = Study.from_json(tiny_study.to_json())
    assert again == tiny_study
    assert again.digest == tiny_study.digest


def test_a_study_file_may_be_toml_or_json(tmp_path: Path) -> None:
    toml, by_json = tmp_path / "study.toml", tmp_path / "study.json"
    toml.write_text(TOML)
    study = Study.load(toml)
    assert study.roster == ("H1", "H2")
    assert study.training.rounds == 3
    assert study.tasks[0].bins == ("bad", "good")
    by_json.write_text(study.to_json())
    assert Study.load(by_json).digest == study.digest


def test_defaults_need_not_be_written_down(tmp_path: Path) -> None:
    short, long = tmp_path / "short.toml", tmp_path / "long.toml"
    short.write_text(TOML)
    long.write_text(TOML + "local_epochs = 1\n[privacy]\nmin_cell = 5\n")
    assert Study.load(short).digest == Study.load(long).digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 3", "round = 3", "training.round: Extra inputs"),
        ('name = "survival"', 'name = "os"', "task os: tasks of kind survival, and only these, are called survival or"),
        ('name = "by-hand"', 'name = "by-hand"\ncolour = "red"', "colour: Extra inputs"),
        ("rounds = 3", "rounds = 0", "training.rounds: "),
        ("rounds = 3", "rounds = 3\ndrift = 1.5", "training.drift: "),
        ("rounds = 3", 'rounds = 3\ndrift = 1.0\n[aggregation]\noptimiser = "adam"', "training.drift takes the next"),
        (
            "rounds = 3",
            'rounds = 3\n[aggregation]\nextrapolate = true\nrule = "median"',
            "aggregation.extrapolate leng",
        ),
        ("rounds = 3", "rounds = 3\ndrift = 1.0\n[aggregation]\nextrapolate = true", "aggregation.extrapolate leng"),
        ('roster = ["H1", "H2"]', 'roster = ["H1", "H1"]', "roster must name each site once"),
        ('roster = ["H1", "H2"]', "roster = []", "roster must name each site once"),
        ('roster = ["H1", "H2"]', 'roster = ["H1", "../H2"]', "roster.1: "),
        ('roster = ["H1", "H2"]', 'roster = ["H1"]\nquorum = 2', "quorum 2 exceeds the roster of 1 sites"),
        ('name = "by-hand"', 'name = "by hand"', "name: "),
        ("a" * 64, "a" * 63, "slides.sha256: "),
        ("in_width = 8", "", "slides.in_width: Field required"),
        ('bins = ["bad", "good"]', 'bins = ["bad"]', "at least two bins"),
        ('[[tasks]]\nname = "survival"', '[[tasks]]\nname = "survival"\nkind = "survival"', "not valid TOML"),
        ('bins = ["bad", "good"]', 'bins = ["bad", "bad"]', "at least two bins, each once"),
        ("{text}", "{text} of the {organ}", "template must contain {text} once, and no other braces"),
        ("{text}", "{text:d}", "template must contain {text} once"),
        ("{text}", "{text", "template must contain {text} once"),
        ("rounds = 3", 'rounds = 3\n[[clinical]]\nname = "grade"', "clinical.0.name: "),
        ("rounds = 3", 'rounds = 3\n[[clinical]]\nname = "sex"\nvalues = ["Female", "Male"]', '"female" and "male"'),
        ("rounds = 3", 'rounds = 3\n[[clinical]]\nname = "age"\nvalues = ["old"]', "age: it is a number"),
        (
            "rounds = 3",
            'rounds = 3\n[[clinical]]\nname = "age"\n[[clinical]]\nname = "age"',
            "inputs must be named once",
        ),
        *(
            ("rounds = 3", f"rounds = 3\n[model]\n{line}", f"model.*{line.split()[0]}")
            for line in (
                *("heads = 0", "heads = 3", "output_width = 0", "output_width = -4", "width_ratio = 0.01"),
                *("width_ratio = 1.5", "groups = []", "groups = [[0, 0]]", "groups = [[0, 2]]", "groups = [[-1, 1]]"),
                *("groups = [[1, 0]]", "groups = [[1, 1], [0, 0]]", "extra_extractors = -1", "drop_path = 1.0"),
                *("gene_tokens = 0", "gene_latent = 0", "gene_dropout = 1.0", "expression_dropout = -0.1"),
                "gene_minimum = 0",
            )
        ),
        ("in_width = 8", "in_width = 8\nwidth = 0", "slides.width: "),
        ("in_width = 8", "in_width = 8\nwidth = 66", "slides.width: .*multiple of 4"),
        ("in_width = 8", "in_width = 8\ndepth = 0", "slides.depth: "),
        *(
            ("rounds = 3", f'rounds = 3\n[[modalities]]\nname = "m"\nwidth = 1\ncolumns = ["{column}"]', "in disguise")
            for column in ("Survival", "event", "OS months", "tumor.type", "has_slides")
        ),
    ],
)
def test_a_wrong_study_file_is_one_clear_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        Study.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_the_number_of_further_problems_is_told(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(TOML.replace("rounds = 3", "rounds = 0\nbatch_size = 0\nclip_norm = -1"))
    with pytest.raises(ConfigError, match=r"training.rounds: .* \(and 2 more\)"):
        Study.load(path)


@pytest.mark.parametrize(("text", "where"), [("{", "study"), ('{"name": "x"}', "study")])
def test_json_that_is_no_study_is_refused(text: str, where: str) -> None:
    with pytest.raises(ConfigError, match=f"^{where}: "):
        Study.from_json(text)


def test_an_absent_study_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study\.toml: no such study file"):
        Study.load(tmp_path / "study.toml")


def test_two_tasks_of_one_name_are_refused(tiny_study: Study) -> None:
    content = json.loads(tiny_study.to_json())
    content["tasks"].append(content["tasks"][0])
    with pytest.raises(ConfigError, match="tasks must be named once each"):
        Study.from_json(json.dumps(content))


def test_a_study_cannot_be_changed(tiny_study: Study) -> None:
    with pytest.raises(ValueError, match="frozen"):
        tiny_study.seed = 3  # type: ignore[misc]


def test_an_unknown_task_lists_the_known_ones(tiny_study: Study) -> None:
    assert tiny_study.task("stage").kind == "ordinal"
    with pytest.raises(ConfigError, match="no task 'grade'; it has diagnosis, stage, survival"):
        tiny_study.task("grade")


@pytest.mark.parametrize("slides", [{"standardise": "position", "rows": 0}, {"standardise": "feature", "rows": 3}])
def test_rows_per_bag_belong_to_standardising_by_position(slides: dict[str, object], tiny_study: Study) -> None:
    content = json.loads(tiny_study.to_json())
    content["slides"] |= slides
    with pytest.raises(ConfigError, match="rows is needed with standardise"):
        Study.from_json(json.dumps(content))


def test_probes_need_the_model_of_this_project_and_answers_that_can_travel(tiny_study: Study) -> None:
    document = json.loads(tiny_study.to_json()) | {"probes": {"questions": 40}}
    assert Study.from_json(canonical_json(document)).probes.largest == 10
    with pytest.raises(ConfigError, match="task stage: a probe has 2052 coefficients"):
        Study.from_json(canonical_json(document | {"model": document["model"] | {"output_width": 512}}))
    baseline = {"kind": "mlp", "head": "separate"}
    hazards = {"training": document["training"] | {"objective": "hazards"}, "model": document["model"] | baseline}
    with pytest.raises(ConfigError, match="probes need model"):
        Study.from_json(canonical_json(document | hazards))
    Study.from_json(canonical_json(document | hazards | {"probes": {"questions": 0}}))
    for wrong in ({"questions": -1}, {"largest": 0.0}):
        with pytest.raises(ConfigError, match="probes"):
            Study.from_json(canonical_json(document | {"probes": wrong}))

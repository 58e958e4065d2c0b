"""Local label codes -> vocabulary values: what matches, what is like it, and storing what a person confirmed.

This runs at the hospital for its own people, so codes are shown here and nowhere else; texts that are not yet mapped
enter no cache.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tomlkit
from tomlkit.items import Table

from modaltune.data.clinical import GDC_MISSING
from modaltune.data.site import SITE_FILE, SiteConfig
from modaltune.doctor.site_files import SiteFiles
from modaltune.errors import ConfigError, LabelError
from modaltune.federation.task import TaskSpec
from modaltune.storage import write_text

if TYPE_CHECKING:
    from modaltune.encoders.text import TextEncoder

MOST_CODES = 60
"""More different values than this are no codes but free text or identifiers."""
SHOWN = 3
UNKNOWN = {*GDC_MISSING, "n/a", "na", "nan", "none", "missing", "not available", "not known", "x", "?", "-"}
"""Codes that mean that the label is not known."""
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_TELLING = re.compile(
    r"""[^\W_]               # a letter or digit
    |[+<>=\u2264\u2265\u00b1?]
    |(?<=\d)[-./,](?=\d)    # between digits
    |(?<=\S)-(?!\w)         # a minus: at the end of a word,
    |-(?=\s*$)              # of the text,
    |(?<!\w)-(?=\d)         # or before a number; between words it is a hyphen
    """,
    re.VERBOSE,
)
LEAST_LIKE = 0.25
"""Cosine similarity below which an order is chance: IDC has less than 0.1 to either carcinoma of BRCA."""
Mapped = dict[str, dict[str, str]]
"""Task -> local code -> vocabulary value; an empty value means unlabelled."""


@dataclass(frozen=True)
class LocalCode:
    """A label of the cases table that the vocabulary does not have.

    Attributes:
        cases: how many rows have it.
        match: the value that it equals but for letter case, spaces and punctuation that tells nothing; empty = it says
            "not known".
        suggestions: (value, cosine similarity of the texts), best first; empty for a code without letters.
    """

    task: str
    code: str
    cases: int
    match: str | None = None
    suggestions: tuple[tuple[str, float], ...] = ()


def local_codes(site: SiteFiles, tasks: Sequence[TaskSpec]) -> list[LocalCode]:
    """Codes of a site that a vocabulary lacks and ``site.toml`` does not map yet, by task, commonest first.

    Raises:
        LabelError: a label column has too many different values to be one of codes.
    """
    out = []
    for task in tasks:
        if task.kind == "survival" or task.name not in site.config.tasks:
            continue
        counts = site.values(task=task.name)[task.name].dropna().astype(str).value_counts()
        known = {value.casefold() for value in (*task.values, *site.config.labels.get(task.name, {}).values())}
        unknown = {str(code): int(count) for code, count in counts.items() if str(code).casefold() not in known}
        if len(unknown) > MOST_CODES:
            raise LabelError(
                f"site {site.config.name}: task {task.name!r} has {len(unknown)} different labels that the vocabulary"
                f" lacks, at most {MOST_CODES} can be codes; map another column to {task.name!r} in [columns]"
            )
        out += [LocalCode(task.name, code, count, _match(code, task)) for code, count in unknown.items()]
    return out


def _match(code: str, task: TaskSpec) -> str | None:
    if code.strip().casefold() in UNKNOWN:
        return ""
    found = [value for value in task.values if _bare(value) == _bare(code)]
    return found[0] if len(found) == 1 else None


def _bare(text: str) -> str:
    """Letters, digits, and the marks that tell one value from another: HER2- is not HER2+, 1-2 not 12."""
    return "".join(_TELLING.findall(_DASHES.sub("-", text.casefold())))


def ranked(codes: Iterable[LocalCode], tasks: Sequence[TaskSpec], encoder: TextEncoder) -> list[LocalCode]:
    """The codes without a match, with the vocabulary values whose name or text is nearest to them."""
    specs = {task.name: task for task in tasks}
    out = []
    for code in codes:
        if code.match is not None or not any(letter.isalpha() for letter in code.code):
            out.append(code)  # to a sentence encoder all numbers are alike
            continue
        labels = specs[code.task].labels
        here = encoder.encode([code.code])[0]
        names, texts = ([label.value for label in labels], [label.text for label in labels])
        near = (encoder.embed(names) @ here).maximum(encoder.embed(texts) @ here).tolist()
        like = [pair for pair in zip(names, near, strict=True) if pair[1] >= LEAST_LIKE]
        best = sorted(like, key=lambda pair: -pair[1])[:SHOWN]
        out.append(LocalCode(code.task, code.code, code.cases, None, tuple(best)))
    return out


def accepted(pairs: Iterable[str], codes: Sequence[LocalCode], tasks: Sequence[TaskSpec]) -> Mapped:
    """``CODE=VALUE`` as given on a command line; an empty value means unlabelled.

    Raises:
        ConfigError: no such code or value, or one that fits several tasks.
    """
    out: Mapped = {}
    for pair in pairs:
        code, equals, value = (part.strip() for part in pair.rpartition("="))
        if not equals or not code:
            raise ConfigError(f"--accept {pair!r}: expected CODE=VALUE, with VALUE from the vocabulary or empty")
        holding = [found.task for found in codes if found.code == code]
        if not holding:
            raise ConfigError(f"--accept {pair!r}: no unmapped label {code!r} at this site; codes are taken as written")
        fitting = [task for task in tasks if task.name in holding and (not value or value in task.values)]
        if not fitting:
            known = next(task.values for task in tasks if task.name == holding[0])
            raise ConfigError(
                f"--accept {pair!r}: the vocabulary has {', '.join(map(repr, known))}; choose one of them"
            )
        if len(fitting) > 1:
            names = " and ".join(task.name for task in fitting)
            raise ConfigError(f"--accept {pair!r}: fits {names}; write it into [labels] of {SITE_FILE} by hand")
        out.setdefault(fitting[0].name, {})[code] = value
    return out


def asked(codes: Iterable[LocalCode], reply: Callable[[str], str]) -> Mapped:
    """Ask a person about every suggestion, one after the other: yes, no (the next one), skip, or unlabelled.

    Args:
        codes: codes with suggestions.
        reply: shows a question and returns the answer: ``y``, ``n``, ``s`` or ``u``.
    """
    out: Mapped = {}
    for code in codes:
        for value, _ in code.suggestions:
            answer = reply(f"{code.task}: {code.code!r} ({code.cases} cases) = {value!r}?")
            if answer == "n":
                continue
            if answer in ("y", "u"):
                out.setdefault(code.task, {})[code.code] = value if answer == "y" else ""
            break
    return out


def store(site: SiteFiles, mapping: Mapping[str, Mapping[str, str]]) -> None:
    """Add codes to ``[labels.TASK]`` of ``site.toml``; everything else, comments too, stays as it is."""
    path = site.folder / SITE_FILE
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    labels = document.setdefault("labels", tomlkit.table(is_super_table=True))
    for task, codes in mapping.items():
        table: Table = labels.setdefault(task, tomlkit.table())
        for code, value in codes.items():
            table[code] = value
    text = tomlkit.dumps(document)
    SiteConfig.model_validate(tomllib.loads(text))
    write_text(path, text)

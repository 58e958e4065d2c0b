"""One `modaltune-simulate` command: its seeds one after the other, their rows together, one report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modaltune.errors import ConfigError
from modaltune.tasks.vocabulary import load_vocabulary, vocabulary_file
from modaltune.versions import installed_versions
from server.report import write_report
from simulation.experiment import COMPARISONS, Experiment, Say
from simulation.outcomes import Outcome, write_outcomes
from simulation.run_folder import files_of, remembered, run_folder, seed_folders, without_working_files
from simulation.study import checked_settings, draft_study, read_sites

Settings = Mapping[str, Mapping[str, Any]]
Build = Callable[[Path, int, bool], Sequence[Path]]  # out, seed, whether with every label -> site folders


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One `modaltune-simulate` command.

    Attributes:
        name: name of the study.
        title: heading of the report.
        vocabulary: file in ``configs/labels``.
        settings: file in ``configs/studies``.
        build: writes the site folders of a seed.
        notes: sentences for the report.
        changes: settings instead of the file's, table by table.
        comparisons: which other models to train.
        cross_site: also one federation without each hospital in turn.
        source: folder of the tables that the site folders are made of.
    """

    name: str
    title: str
    vocabulary: str
    settings: str
    build: Build
    notes: tuple[str, ...] = ()
    changes: Settings = field(default_factory=dict)
    comparisons: tuple[str, ...] = COMPARISONS
    cross_site: bool = False
    source: Path | None = None


def simulate(plan: Plan, out: Path, seeds: Sequence[int], say: Say, command: str) -> list[dict[str, Any]]:
    """Run a plan for some seeds into ``out``, or go on with it, and return its metric rows.

    Args:
        command: as it was typed, which decides everything; only the same one goes on where it was interrupted.
    """
    settings = checked_settings(plan.settings, plan.changes, "--set")
    tables = files_of(plan.source) if plan.source else {}
    begun = {"command": command, "settings": settings, "versions": installed_versions(), "tables": tables}
    with run_folder(out, begun, say) as folder:
        folders = seed_folders(folder, seeds)
        outcomes = [_one_seed(plan, settings, path, seed, say, seed == seeds[0]) for seed, path in folders.items()]
        worst = "DEGRADED" if any(o.summary["status"] != "OK" for o in outcomes) else "OK"
        summary = outcomes[0].summary | {
            "title": plan.title,
            "simulated": True,
            "status": worst,
            "seeds": list(seeds),
            "versions": installed_versions(),
            "command": command,
            "notes": [*plan.notes, *dict.fromkeys(note for outcome in outcomes for note in outcome.notes)],
        }
        rows = write_outcomes(folder, outcomes, summary)
        say("writing the report")
        write_report(folder)
        for path in folders.values():
            without_working_files(path)
    return rows


def _one_seed(plan: Plan, settings: Settings, folder: Path, seed: int, say: Say, first: bool) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    with remembered(folder):
        sites = plan.build(folder / "sites", seed, False)
        truth = plan.build(folder / "truth", seed, True)
    tasks = load_vocabulary(vocabulary_file(plan.vocabulary))
    cohorts = read_sites(sites, tasks, plan.name)
    if plan.cross_site and len(cohorts) < 2:
        raise ConfigError("--cross-site leaves each hospital out in turn: one hospital is too few, give two or more")
    study = draft_study(plan.name, cohorts, tasks, folder / "sites" / "gene_sets.gmt", settings, seed=seed)
    for line in plan.notes if first else ():  # nothing is said before everything is checked
        say(line)
    say(f"seed {seed}: {len(cohorts)} hospitals, {sum(len(cohort.cases) for cohort in cohorts.values())} cases")
    names = list(cohorts)
    experiment = Experiment(
        study, dict(zip(names, sites, strict=True)), dict(zip(names, truth, strict=True)), folder, say
    )
    return experiment.run(comparisons=plan.comparisons, cross_site=plan.cross_site)

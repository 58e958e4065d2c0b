"""modaltune-simulate: federations of hospitals on one machine."""

from __future__ import annotations

import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from modaltune.console import console, emit_json, progress_line, run_app
from modaltune.data.tcga import PATHWAYS, TcgaTables, read_tcga
from modaltune.errors import ConfigError
from server.cross_site import matrix_tables, read_matrices
from server.report_data import leaves_out, load_run
from server.tables import comparison_table, participation_table, traffic_table
from simulation.baselines import chosen_methods
from simulation.disguise import disguise, disguise_table
from simulation.experiment import ABLATIONS, COMPARISONS, ON_REQUEST
from simulation.fetch.cohort import HOSPITALS, Say, Wanted, fetch_cohort
from simulation.fetch.connection import Connection
from simulation.fetch.gdc import GDC
from simulation.fetch.xena import XENA
from simulation.run_commands import Json, compare, unlabelled, within
from simulation.runs import Plan, simulate
from simulation.sites import check_overrides, disjoint_tasks, require_known
from simulation.studies.command import study
from simulation.study import TABLES
from simulation.synthetic import HOSPITAL_SHARES, TASKS, build_synthetic
from simulation.tcga import build_tcga, left_out
from simulation.words import OWN_WORDS, in_own_words, own_words, words_vocabulary

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

Out = Annotated[Path | None, typer.Option(help="Folder of the run; an earlier finished run there is replaced.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]
Seeds = Annotated[str | None, typer.Option(help="Several seeds, e.g. 0,1,2; rows are appended per seed.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="Training rounds instead of the study's.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--tasks", help="'disjoint', 'own-words' (tcga), or H1=diagnosis,stage for one hospital (repeat)."),
]
Without = Annotated[
    list[str] | None, typer.Option("--without", help="Take a modality away: H2=expression or H2=slides (repeat).")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Another setting, e.g. training.objective=distillation (repeat).")
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Which comparisons, e.g. pooled,linear; default local,pooled,linear,linear_local, with --tasks also"
        " separate_heads,per_task,texts_alone (docs/studies.md). Baselines (docs/baselines.md): abmil/federated, abmil"
        " for all three ways, baselines for every row."
    ),
]
CrossSite = Annotated[
    bool, typer.Option("--cross-site", help="Federate without each hospital in turn too: matrix and influence.")
]


@app.command()
def demo(
    seed: Seed = 0, seeds: Seeds = None, out: Out = None, rounds: Rounds = None, tasks: Tasks = None,
    without: Without = None, settings: Settings = None, methods: Methods = None, cross_site: CrossSite = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Five synthetic hospitals with different tasks and missing modalities train one model; three to five minutes."""
    overrides, lacks = _overrides(tasks, tuple(HOSPITAL_SHARES), TASKS), _pairs(without, "--without")
    check_overrides(tuple(HOSPITAL_SHARES), TASKS, overrides, lacks)

    def build(folder: Path, number: int, everything: bool) -> Sequence[Path]:
        labelled = dict.fromkeys(HOSPITAL_SHARES, TASKS) if everything else overrides
        return build_synthetic(folder, seed=number, tasks=labelled, without=lacks)

    plan = Plan(
        name="demo",
        title="Demo: five synthetic hospitals",
        vocabulary="synthetic",
        settings="synthetic",
        build=build,
        changes=_changes(settings, rounds),
        comparisons=_comparisons(methods, tasks),
        cross_site=cross_site,
        notes=("The cohort is synthetic (docs/synthetic.md): no number here says anything about patients.",),
    )
    _run(plan, out or Path("runs/demo"), _seeds(seed, seeds), json)


@app.command()
def tcga(
    data: Annotated[Path, typer.Option(help="Folder with the TCGA tables (docs/data.md).")],
    cohort: Annotated[str, typer.Option(help="BRCA, GBMLGG, NSCLC, RCC, COADREAD or BLCA.")],
    hospitals: Annotated[str | None, typer.Option(help="Which hospitals, e.g. H1,H2; default all.")] = None,
    rounds: Rounds = None, seed: Seed = 0, seeds: Seeds = None, tasks: Tasks = None, without: Without = None,
    settings: Settings = None, methods: Methods = None, cross_site: CrossSite = False, out: Out = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Real TCGA cases, split by the hospital that contributed them."""
    tables = read_tcga(data, cohort)
    chosen = _hospitals(hospitals, tables.hospitals)
    tables, overrides = _labelled(tables, chosen, tasks)
    words, lacks = tasks == [OWN_WORDS], _pairs(without, "--without")
    check_overrides(chosen, tables.tasks, overrides, lacks)

    def build(folder: Path, number: int, everything: bool) -> Sequence[Path]:
        held = None if everything else overrides
        return build_tcga(
            data,
            cohort,
            folder,
            hospitals=chosen,
            seed=number,
            tasks=held,
            without=lacks,
            words=words,
            gene_sets=True,
        )

    plan = Plan(
        name=f"tcga-{tables.cohort.lower()}",
        title=f"TCGA {tables.cohort}: {len(chosen)} hospitals",
        vocabulary=words_vocabulary(tables.cohort) if words else tables.cohort.lower(),
        settings="tcga",
        build=build,
        changes=_changes(settings, rounds),
        comparisons=_comparisons(methods, tasks),
        cross_site=cross_site,
        source=data / tables.cohort,
        notes=(*tables.notes, *left_out(tables, lacks)),
    )
    _run(plan, out or Path(f"runs/tcga-{tables.cohort.lower()}"), _seeds(seed, seeds), json)


@app.command("fed-tcga-brca")
def fed_tcga_brca(
    data: Annotated[Path, typer.Option(help="Folder with fed_tcga_brca.parquet (docs/data.md).")],
    seeds: Annotated[str, typer.Option(help="Seeds of the split.")] = "0,1,2,3,4",
    json: Json = False,
) -> None:
    """Cox regression over six real centres: exact over sites, by FedAvg, FedProx and FedAdam, and pooled; minutes."""
    from simulation.fed_tcga_brca import compare

    found = compare(data, _seeds(0, seeds), progress_line(quiet=False))
    if json:
        emit_json(found)
    else:
        console.print(comparison_table(found["metrics"]))


@app.command("disguise")
def disguise_command(
    data: Annotated[Path, typer.Option(help="Folder of the TCGA tables (docs/data.md).")],
    cohort: Annotated[list[str], typer.Option(help="Which, e.g. RCC (repeat).")],
    seeds: Annotated[str, typer.Option(help="Seeds of the split.")] = "0,1,2",
    json: Json = False,
) -> None:
    """Does the unit of the expression tell the diagnosis? A linear model on values below and above the median."""
    found = [disguise(read_tcga(data, name), _seeds(0, seeds)) for name in cohort]
    if json:
        emit_json([vars(row) for row in found])
    else:
        console.print(disguise_table(found))


@app.command()
def scale(
    sites: Annotated[int, typer.Option(min=1, help="Sites that answer at full size, with nothing behind them.")] = 100,
    study: Annotated[str, typer.Option(help="full (as in modaltune bench wire) or small")] = "full",
    rounds: Annotated[int, typer.Option(min=1, help="Training rounds.")] = 1,
    json: Json = False,
) -> None:
    """Measure the real coordinator (nginx, TLS, keys) against many sites: seconds a round, memory of its processes."""
    from simulation.scale.measure import measure_scale

    if study not in ("full", "small"):
        raise typer.BadParameter("--study is full or small")
    measured = measure_scale(sites, study, rounds, progress_line(quiet=False))
    if json:
        emit_json(measured)
    else:
        for name, value in measured.items():
            console.print(f"{name}: {value}", markup=False)


@app.command()
def build(
    kind: Annotated[str, typer.Argument(help="synthetic or tcga")],
    out: Annotated[Path, typer.Option(help="Folder that receives one site folder a hospital.")],
    seed: Seed = 0,
    data: Annotated[Path | None, typer.Option(help="TCGA tables, for tcga.")] = None,
    cohort: Annotated[str | None, typer.Option(help="TCGA cohort, for tcga.")] = None,
    tasks: Tasks = None, without: Without = None, json: Json = False,
) -> None:  # fmt: skip
    """Write only the site folders."""
    lacks = _pairs(without, "--without")
    if kind == "synthetic":
        overrides = _overrides(tasks, tuple(HOSPITAL_SHARES), TASKS)
        folders = build_synthetic(out, seed=seed, tasks=overrides, without=lacks)
    elif kind == "tcga" and data is not None and cohort is not None:
        tables = read_tcga(data, cohort)
        _, overrides = _labelled(tables, tables.hospitals, tasks)
        check_overrides(tables.hospitals, tables.tasks, overrides, lacks)
        for note in (*tables.notes, *left_out(tables, lacks)):
            console.print(note, markup=False)
        if not tables.gene_sets:
            console.print(f"no {' or '.join(PATHWAYS)} in {data}, so no gene sets beside the sites", markup=False)
        words = tasks == [OWN_WORDS]
        folders = build_tcga(data, cohort, out, seed=seed, tasks=overrides, without=lacks, words=words)
    elif kind == "tcga":
        raise ConfigError("build tcga needs --data DIR and --cohort NAME; docs/data.md says how to get the tables")
    else:
        raise ConfigError(f"unknown cohort kind {kind!r}; choose synthetic or tcga")
    if json:
        emit_json({"sites": [str(folder) for folder in folders]})
    else:
        console.print(f"{len(folders)} site folders in {out}", markup=False)


@app.command()
def fetch(
    cohort: Annotated[str, typer.Option(help="BRCA, GBMLGG, NSCLC, RCC, COADREAD or BLCA.")],
    out: Annotated[Path, typer.Option(help="Receives COHORT/; an interrupted fetch goes on here.")],
    hospitals: Annotated[
        int, typer.Option(min=1, help="How many of the largest centres become hospitals.")
    ] = HOSPITALS,
    centres: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Table 'tss, centre' in place of GDC's names.")
    ] = None,
    base_gdc: Annotated[str, typer.Option(help="Address of the GDC API.")] = GDC,
    base_xena: Annotated[str, typer.Option(help="Address of the Xena hub.")] = XENA,
    json: Json = False,
) -> None:
    """Download a cohort's open tables (clinical, expression, slide list) for `tcga`, split by contributing centre."""
    wanted = Wanted(
        cohort=cohort.upper(),
        hospitals=hospitals,
        centres=centres,
        gdc=base_gdc.rstrip("/"),
        xena=base_xena.rstrip("/"),
    )
    with _steps_bar(quiet=json) as say:
        manifest = fetch_cohort(wanted, out, Connection(), say)
    if json:
        emit_json(manifest)
        return
    for name, about in manifest["hospitals"].items():
        console.print(f"{name}: {about['cases']} cases with expression, {about['centre']}", markup=False)
    for reason, count in manifest["counts"].items():
        if count:
            console.print(f"{count} {reason}", markup=False)
    state = "fetched" if manifest["fetched"] else "complete already, verified"
    console.print(f"{out / wanted.cohort}: {state}; `tcga` also needs gene sets: {out / 'pathways.gmt'}", markup=False)


@contextmanager
def _steps_bar(*, quiet: bool) -> Iterator[Say]:
    """A row for each step; nothing when quiet or not on a terminal."""
    with Progress(console=console, disable=quiet or not console.is_terminal) as bar:
        rows: dict[str, Any] = {}

        def say(what: str, done: int, total: int | None) -> None:
            if what not in rows:
                rows[what] = bar.add_task(what, total=total)
            bar.update(rows[what], completed=done, total=total)

        yield say


def _hospitals(names: str | None, known: Sequence[str]) -> list[str]:
    chosen = list(known) if names is None else [name.strip() for name in names.split(",")]
    require_known("hospital", chosen, known)
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"--hospitals {names!r}: name each hospital once")
    return chosen


def _seeds(seed: int, seeds: str | None) -> list[int]:
    if seeds is None:
        return [seed]
    try:
        out = [int(part) for part in seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {seeds!r}: expected whole numbers separated by commas, e.g. 0,1,2") from error
    if min(out) < 0 or len(set(out)) != len(out):
        raise ConfigError(f"--seeds {seeds!r}: expected different numbers from 0 upwards")
    return out


def _changes(settings: Sequence[str] | None, rounds: int | None) -> dict[str, dict[str, Any]]:
    """``--set table.key=value`` as nested tables; values are read as TOML, anything else is text."""
    out: dict[str, dict[str, Any]] = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        table, dot, key = name.partition(".")
        if not equals or not dot or table not in TABLES:
            raise ConfigError(f"--set {setting!r}: expected TABLE.KEY=VALUE with one of {', '.join(TABLES)}")
        try:
            out.setdefault(table, {})[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            out.setdefault(table, {})[key] = value
    if rounds is not None:
        out.setdefault("training", {})["rounds"] = rounds
    return out


def _comparisons(methods: str | None, tasks: Sequence[str] | None) -> tuple[str, ...]:
    if methods is None:
        return (*COMPARISONS, *ABLATIONS) if tasks else COMPARISONS
    names = [name.strip() for name in methods.split(",") if name.strip()]
    return chosen_methods(names, (*COMPARISONS, *ABLATIONS, *ON_REQUEST))


def _pairs(values: Sequence[str] | None, option: str) -> dict[str, tuple[str, ...]]:
    out: dict[str, tuple[str, ...]] = {}
    for value in values or ():
        hospital, equals, names = value.partition("=")
        if not equals or not hospital or not names:
            raise ConfigError(f"{option} {value!r}: expected HOSPITAL=NAME[,NAME], e.g. H2=expression")
        if hospital.strip() in out:
            raise ConfigError(
                f"{option} names {hospital.strip()} twice; give all its names at once, separated by commas"
            )
        out[hospital.strip()] = tuple(name.strip() for name in names.split(","))
    return out


def _overrides(
    values: Sequence[str] | None, hospitals: Sequence[str], tasks: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    if list(values or ()) != ["disjoint"]:
        return _pairs(values, "--tasks")
    return disjoint_tasks(hospitals, tasks)


def _labelled(
    tables: TcgaTables, chosen: Sequence[str], tasks: Sequence[str] | None
) -> tuple[TcgaTables, dict[str, tuple[str, ...]]]:
    """The tables with the tasks that ``--tasks`` is about, and which of the chosen hospitals label what."""
    if list(tasks or ()) == [OWN_WORDS]:
        worded = in_own_words(tables)
        return worded, own_words(chosen, worded.tasks)
    held = _overrides(tasks, tables.hospitals, tables.tasks)
    if tasks == ["disjoint"]:  # who labels everything labels what it has
        held = {name: value for name, value in held.items() if name in chosen and value != tables.tasks}
    return tables, held


def _run(plan: Plan, out: Path, seeds: Sequence[int], json: bool) -> None:
    started = time.monotonic()
    say: Callable[[str], None] = progress_line(False)
    rows = simulate(plan, out, seeds, say, shlex.join(["modaltune-simulate", *sys.argv[1:]]))
    if json:
        emit_json({"run": str(out), "metrics": rows})
    else:
        _show(out, rows, plan.notes)
    say(f"report: {out / 'report.html'}  ({time.monotonic() - started:.0f} s)")
    if load_run(out).summary["status"] != "OK":
        raise typer.Exit(3)


def _show(out: Path, rows: Sequence[dict[str, Any]], said: Sequence[str]) -> None:
    """Tables of a run and its notes, but for those that were ``said`` when it started."""
    run = load_run(out)
    console.print(comparison_table([row for row in rows if not leaves_out(row["method"])]))
    for table in matrix_tables(read_matrices(out)):
        console.print(table)
    console.print(participation_table(run.rounds, run.study.get("roster", ())))
    console.print(traffic_table(run.rounds))
    for note in run.summary["notes"]:
        if note not in said:
            console.print(note, markup=False)


for command in (unlabelled, within, compare, study):
    app.command()(command)


def main() -> None:
    """Entry point."""
    run_app(app)

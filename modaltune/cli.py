"""modaltune: work on one machine, without a federation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TextColumn

from modaltune.console import console, emit_json, progress_line, run_app
from modaltune.doctor.command import doctor
from modaltune.explain.command import explain
from modaltune.federation.study import Study
from modaltune.onboarding.commands import init, labels
from modaltune.prediction.command import predict
from modaltune.slides.cli import app as slides_app
from modaltune.trust.commands import release_check
from modaltune.trust.keys import read_public

if TYPE_CHECKING:  # commands import what they need themselves: a check of a folder should not wait for torch
    from modaltune.local import LocalTraining

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(slides_app, name="slides")
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, the rest on stderr.")]


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="model/ folder of a run.")],
    data: Annotated[Path, typer.Option(help="Folder with tables laid out as docs/data.md says.")],
    cohort: Annotated[str, typer.Option(help="BRCA, GBMLGG, NSCLC, RCC, COADREAD or BLCA.")],
    public_key: Annotated[Path | None, typer.Option(help="Public key with which the model must be signed.")] = None,
    json: Json = False,
) -> None:
    """Score a trained model on other cases: those of the cohort that it can read; none may be a training case."""
    from modaltune.evaluation.external import evaluate_tables
    from modaltune.tables import metric_table

    say = progress_line(False)
    public = None if public_key is None else read_public(public_key)
    rows = evaluate_tables(model, data, cohort, public_pem=public, say=say)
    say("cases of every split are scored, so a folder that the model was trained on gives optimistic figures")
    if json:
        emit_json(rows)
    else:
        console.print(metric_table(rows))


@app.command()
def train(
    site: Annotated[Path, typer.Argument(help="Site folder (docs/data.md).")],
    study: Annotated[Path, typer.Option(help="study.toml or study.json, for instance of a run folder.")],
    out: Annotated[Path, typer.Option(help="Receives model/ and training.jsonl; an interrupted run goes on here.")],
    patience: Annotated[int | None, typer.Option(min=1, help="Checks without a better loss before stopping.")] = None,
    json: Json = False,
) -> None:
    """Train the study's model on one site alone; an interrupted run that is started again gives the same model."""
    from modaltune.local import LocalTraining
    from modaltune.workers import joined

    with joined() as peers:
        training = LocalTraining(Study.load(study), site, out, patience=patience)
        _show_progress(training, disable=not peers.first)
    if not peers.first:
        return
    numbers = training.numbers
    loss = numbers.best_loss if math.isfinite(numbers.best_loss) else None
    result = {"model": str(out / "model"), "steps": numbers.step, "best_step": numbers.best_step, "val_loss": loss}
    if json:
        emit_json(result)
    else:
        console.print(f"model: {out / 'model'}  ({numbers.step} steps, best after {numbers.best_step})", markup=False)


def _show_progress(training: LocalTraining, *, disable: bool) -> None:
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, console=console, disable=disable) as bar:
        row = bar.add_task("training", total=training.steps, loss="")

        def say(step: int, steps: int, check: Mapping[str, Any]) -> None:
            loss = check["val_loss"]
            bar.update(row, completed=step, loss="" if loss is None else f"validation loss {loss:.4f}")

        training.run(say)


@app.command()
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="kernels, genes, positions, growth, build, step, wire, bags, aggregate, probes, baselines or all"
        ),
    ] = "all",
    patches: Annotated[int, typer.Option(min=1, help="step: patches of the case.")] = 1024,
    tasks: Annotated[int, typer.Option(min=1, help="step: tasks of the case.")] = 3,
    partitions: Annotated[int, typer.Option(min=1, help="probes: random partitions over sites.")] = 50,
    json: Json = False,
) -> None:
    """Measure this machine, one thread: ratios to the plain path, memory, bags, message size (all: about 6 min)."""
    from modaltune.benchmarks.aggregate import bench_aggregate
    from modaltune.benchmarks.bags import bench_bags
    from modaltune.benchmarks.baselines import bench_baselines
    from modaltune.benchmarks.parts import bench_genes, bench_growth, bench_kernels, bench_positions
    from modaltune.benchmarks.probes import bench_probes
    from modaltune.benchmarks.step import bench_build, bench_step
    from modaltune.benchmarks.table import bench_table
    from modaltune.benchmarks.wire import bench_wire

    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "kernels": bench_kernels,
        "genes": bench_genes,
        "positions": bench_positions,
        "growth": bench_growth,
        "build": bench_build,
        "step": lambda: bench_step(patches, tasks),
        "wire": bench_wire,
        "bags": bench_bags,
        "aggregate": bench_aggregate,
        "probes": lambda: bench_probes(partitions),
        "baselines": bench_baselines,
    }
    chosen = list(parts) if what == "all" else [what]
    if unknown := [name for name in chosen if name not in parts]:
        raise typer.BadParameter(f"{unknown[0]!r}; choose from all, {', '.join(parts)}")
    results = {name: parts[name]() for name in chosen}
    if json:
        emit_json(results if what == "all" else results[what])
    else:
        console.print(bench_table(results))


for command in (doctor, explain, init, labels, predict, release_check):
    app.command()(command)


def main() -> None:
    """Entry point."""
    run_app(app)

"""``python -m tests.chaos``: every case against the real services; results are kept after each."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from modaltune.console import console, run_app
from modaltune.storage import write_json
from tests.chaos import doors, faults, messages
from tests.chaos.case import Case, Unable
from tests.chaos.stack import Stack

Row = dict[str, Any]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MARKS = {True: "yes", False: "NO", None: "not run"}


def all_cases() -> list[Case]:
    """The whole table."""
    return [*faults.cases(), *doors.cases(), *messages.cases()]


@app.command()
def chaos(
    only: Annotated[list[str], typer.Option(help="Names of cases, or their beginnings; repeat for more.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="File that receives the results after every case.")] = Path("chaos.json"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Run cases again that passed.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print the file as a table in Markdown, run nothing.")] = False,
) -> None:
    """Break the federation in every known way and write down what happens."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped
    if table:
        typer.echo(markdown(_read(out)))
        return
    cases = [case for case in all_cases() if not only or case.name.startswith(tuple(only))]
    done = {row["name"]: row for row in _read(out)}
    todo = [case for case in cases if fresh or not done.get(case.name, {}).get("passed")]
    if todo:
        _run(todo, done, out)
    rows = [done[case.name] for case in cases]
    console.print(_rich(rows))
    raise typer.Exit(int(any(row["passed"] is False for row in rows)))


def _run(cases: Sequence[Case], done: dict[str, Row], out: Path) -> None:
    order = [case.name for case in all_cases()]
    stack = Stack({case.name for case in cases})
    try:
        console.print("starting a coordinator and two hospitals")
        stack.begin()
        if any(case.kind == "fault" for case in cases):
            console.print("a run that nobody disturbs, to compare with")
            console.print(f"  weights {stack.weights[:12]}")
        for number, case in enumerate(cases, start=1):
            console.print(f"{number} of {len(cases)} {case.kind} {case.name}: {case.expected}", markup=False)
            row = done[case.name] = _row(case, stack)
            write_json(out, sorted(done.values(), key=lambda row: order.index(row["name"])))
            console.print(f"  {MARKS[row['passed']]}: {row['observed']} ({row['seconds']:.0f} s)", markup=False)
    finally:
        stack.end()


def _row(case: Case, stack: Stack) -> Row:
    since, recover, seconds = time.monotonic(), None, None
    try:
        seen = case.run(stack)
        passed, observed, recover, seconds = True, seen.text, seen.recover, seen.seconds
    except Unable as reason:
        passed, observed = None, str(reason)
    except Exception as problem:  # noqa: BLE001 - whatever goes wrong is this case's result, and the next one runs
        passed, observed = False, f"{type(problem).__name__}: {str(problem) or 'no reason given'}".splitlines()[0][:300]
        console.print_exception()
    row = {"name": case.name, "kind": case.kind, "expected": case.expected, "observed": observed, "passed": passed}
    row["seconds"] = round(time.monotonic() - since if seconds is None else seconds, 1)
    return row | ({"recover_seconds": recover and round(recover, 1)} if case.kind == "fault" else {})


def markdown(rows: Sequence[Row]) -> str:
    """The results as they stand in docs/reliability.md."""
    lines = [_sum(rows, "fault", "Faults survived"), _sum(rows, "attack", "Attacks refused")]
    for kind, last in (("fault", "Seconds to recover"), ("attack", "Seconds")):
        lines += ["", f"| {kind.capitalize()} | Expected | Observed | Passed | {last} |", "|---|---|---|---|---|"]
        for row in rows:
            if row["kind"] == kind:
                seconds = row.get("recover_seconds") if kind == "fault" else row["seconds"]
                cells = [row["name"], row["expected"], row["observed"], MARKS[row["passed"]], _number(seconds)]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    known = {row["name"] for row in rows}
    if absent := [case.name for case in all_cases() if case.name not in known]:
        lines += ["", f"Not run yet: {', '.join(absent)}."]
    return "\n".join(lines)


def _sum(rows: Sequence[Row], kind: str, what: str) -> str:
    tried = [row for row in rows if row["kind"] == kind and row["passed"] is not None]
    return f"{what}: {sum(row['passed'] for row in tried)} of {len(tried)} tried.  "


def _number(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f}"


def _rich(rows: Sequence[Row]) -> Table:
    table = Table("Case", "Expected", "Observed", "Passed", "Seconds", title="Chaos")
    for row in rows:
        table.add_row(row["name"], row["expected"], row["observed"], MARKS[row["passed"]], _number(row["seconds"]))
    return table


def _read(path: Path) -> list[Row]:
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


if __name__ == "__main__":
    run_app(app)

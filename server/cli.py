"""modaltune-server: the coordinator's commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modaltune.console import console, emit_json, run_app
from modaltune.federation.study import Study
from server.coordinator.home import Home, make_settings

if TYPE_CHECKING:
    from server.coordinator.runs import Run

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
study = typer.Typer(no_args_is_help=True, help="Write, check and name a study.")
audit = typer.Typer(no_args_is_help=True, help="The coordinator's audit log.")
app.add_typer(study, name="study")
app.add_typer(audit, name="audit")

DEGRADED = 3
File = Annotated[Path, typer.Argument(help="study.toml or study.json")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, the rest on stderr.")]
HomeFolder = Annotated[
    Path, typer.Option("--home", envvar="MODALTUNE_SERVER_HOME", help="The coordinator's home folder.")
]
SiteName = Annotated[str, typer.Argument(metavar="SITE", help="Name of a hospital, as in the roster of studies.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until the run has ended.")]
_HOME = Path("~/.modaltune/server")


def _home(folder: Path) -> Home:
    return Home(folder.expanduser().resolve())


def _show(values: dict[str, Any], json: bool) -> None:
    """The outcome of a command: one JSON document, or a line for each value."""
    if json:
        emit_json(values)
        return
    for name, value in values.items():
        parts = [f"{key} {inner}" for key, inner in value.items()] if isinstance(value, dict) else value
        text = ", ".join(map(str, parts)) if isinstance(parts, list) else parts
        console.print(f"{name}: {text}", markup=False, soft_wrap=True)


@study.command()
def new(
    cohort: Annotated[str, typer.Argument(help="A vocabulary in configs/labels (blca, brca, ...), or blank.")],
    site: Annotated[list[str], typer.Option("--site", help="A hospital of the roster; repeat for each.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("study.toml"),
    encoder: Annotated[str, typer.Option(help="Slide encoder: small, longnet or titan.")] = "small",
    in_width: Annotated[
        int | None, typer.Option(min=1, help="Features per patch, where not the encoder's own.")
    ] = None,
    gene_sets: Annotated[Path | None, typer.Option(help="Gene sets, .gmt or .json.")] = None,
    json: Json = False,
) -> None:
    """Write a commented study.toml to begin with."""
    from server.coordinator.draft import write_study

    drafted = write_study(out, cohort, site, encoder, in_width, gene_sets)
    _show({"study": str(out), "digest": drafted.digest}, json)


@study.command()
def check(file: File, json: Json = False) -> None:
    """Validate a study file and say what it asks of the sites."""
    found = Study.load(file)
    summary = {
        "name": found.name,
        "digest": found.digest,
        "roster": list(found.roster),
        "tasks": {task.name: task.kind for task in found.tasks},
        "rounds": found.training.rounds,
        "gene_sets": len(found.gene_sets),
        "patch_width": found.slides.in_width,
    }
    _show(summary, json)
    if not found.gene_sets:
        console.print("no gene sets: expression is not used; study new takes --gene-sets FILE")


@study.command()
def fields(json: Json = False) -> None:
    """Every field of a study file with its default and meaning."""
    from modaltune.federation.fields import field_table, study_fields

    found = study_fields()
    emit_json([vars(field) for field in found]) if json else console.print(field_table(found))


@study.command()
def digest(file: File, json: Json = False) -> None:
    """Print the digest that names a study."""
    found = Study.load(file).digest
    emit_json({"digest": found}) if json else typer.echo(found)


@app.command()
def init(
    host: Annotated[list[str], typer.Option("--host", help="Name or address of this machine; repeat for each.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one public port.")] = 8443,
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    superlink_port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback only.")] = 18000,
    health_port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback only.")] = 18001,
    home: HomeFolder = _HOME,
    json: Json = False,
) -> None:
    """Make a coordinator: authority, certificate, keys, secrets, proxy and systemd files."""
    from server.coordinator.setup import init as make

    values = {
        "hosts": host, "port": port, "listen": listen, "superlink_port": superlink_port, "health_port": health_port,
    }  # fmt: skip
    here = _home(home)
    settings = make_settings(values, "init")
    make(here, settings)
    _show({"home": str(here.folder), "coordinator": settings.address, "public_key": str(here.public_key)}, json)


@app.command()
def invite(
    site: SiteName,
    out: Annotated[Path, typer.Option(help="Folder for SITE.invite.")] = Path("."),
    home: HomeFolder = _HOME,
    json: Json = False,
) -> None:
    """Write SITE.invite, the file that a hospital starts with; it holds no secret."""
    from modaltune.invitation import Invitation
    from server.coordinator import sites

    path = sites.invite(_home(home), site, out)
    _show({"invitation": str(path)} | Invitation.load(path).fingerprints(), json)


@app.command()
def admit(
    key: Annotated[Path, typer.Argument(metavar="SITE.pub", help="Public key that the site made.")],
    home: HomeFolder = _HOME,
    json: Json = False,
) -> None:
    """Let an invited hospital in; compare the fingerprint with the hospital over another channel."""
    from server.coordinator import sites

    site = sites.admit(_home(home), key)
    _show({"site": key.stem, "fingerprint": site.fingerprint, "node": site.node_id}, json)


@app.command()
def revoke(site: SiteName, home: HomeFolder = _HOME, json: Json = False) -> None:
    """Shut a hospital out, at once; to come back it needs a new invitation and a new key."""
    from server.coordinator import sites

    sites.revoke(_home(home), site)
    _show({"site": site, "state": "revoked"}, json)


@app.command()
def start(
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, as systemd wants it.")] = False,
    home: HomeFolder = _HOME,
    json: Json = False,
) -> None:
    """Start SuperLink, superexec and proxy, and keep them running."""
    from server.coordinator.services import start_services

    here = _home(home)
    start_services(here, in_foreground=foreground)
    _show({"coordinator": here.settings().address, "services": "running"}, json)


@app.command()
def stop(home: HomeFolder = _HOME, json: Json = False) -> None:
    """Stop the services; a run that is going on can be resumed later."""
    from server.coordinator.services import stop_services

    here = _home(home)
    here.settings()
    _show({"services": "stopped" if stop_services(here) else "were not running"}, json)


@app.command()
def run(
    file: File,
    name: Annotated[str | None, typer.Option(help="Name of the run; else study and time.")] = None,
    wait: Wait = True,
    home: HomeFolder = _HOME,
    json: Json = False,
) -> None:
    """Run a study. Exit status 0, 3 when a hospital was missing or refused in a round, 4 without a model."""
    from server.coordinator.runs import start_run

    here = _home(home)
    follow(here, start_run(here, file, name), wait, json)


@app.command()
def resume(run: RunName, wait: Wait = True, home: HomeFolder = _HOME, json: Json = False) -> None:
    """Go on with a run that stopped, after the last round that is complete."""
    from server.coordinator.runs import resume_run

    here = _home(home)
    follow(here, resume_run(here, run), wait, json)


@app.command()
def cancel(run: RunName, home: HomeFolder = _HOME, json: Json = False) -> None:
    """End a run that is going on, within half a minute; `resume` goes on after its last complete round."""
    from server.coordinator.runs import cancel_run

    found = cancel_run(_home(home), run)
    _show({"run": found.name, "folder": str(found.folder), "status": found.status["status"]}, json)


def follow(home: Home, run: Run, wait: bool, json: bool) -> None:
    """Show where a submitted run is, or stay until its end and exit with its status."""
    from server.coordinator.progress import told

    found = {"run": run.name, "folder": str(run.folder)}
    if not wait:
        _show(found | {"status": run.status["status"]}, json)
        return
    status = told(home, run)
    _show(found | {"status": status["status"], "weights": status.get("weights")}, json)
    if status["status"] != "OK":
        raise typer.Exit(DEGRADED)


@app.command()
def status(home: HomeFolder = _HOME, json: Json = False) -> None:
    """Health, services, sites and the latest run."""
    from server.coordinator.overview import as_tables, overview

    found = overview(_home(home))
    emit_json(found) if json else console.print(as_tables(found))


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or a run folder.")],
    home: HomeFolder = _HOME,
    json: Json = False,
) -> None:
    """Write report.html of a run anew."""
    from server.coordinator.runs import find_run
    from server.report import write_report

    folder = Path(run) if Path(run).is_dir() else find_run(_home(home), run).folder
    _show({"report": str(write_report(folder))}, json)


@app.command()
def release(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or a run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; else releases/RUN in the home folder.")] = None,
    override: Annotated[
        str, typer.Option(metavar="REASON", help="Release a model that the gate refuses; recorded, and on its card.")
    ] = "",
    home: HomeFolder = _HOME,
    json: Json = False,
) -> None:
    """Write the model of a finished run with a model card and a signature, if its test scores support a release."""
    from server.coordinator.release import release as sign

    here = _home(home)
    _show({"release": str(sign(here, run, out, override)), "public_key": str(here.public_key)}, json)


@app.command()
def query(
    run: RunName,
    task: Annotated[str, typer.Option(help="What to call the task that nobody labelled.")],
    template: Annotated[str, typer.Option(help="Prompt with {text}.")],
    candidate: Annotated[list[str], typer.Option("--candidate", help="A text for {text}; repeat for each.")],
    home: HomeFolder = _HOME,
    json: Json = False,
) -> None:
    """Exploratory: ask the hospitals of a finished run how candidate texts divide their cases (label_queries)."""
    from server.coordinator.queries import ask
    from server.label_query import Asked, answer_table

    found = ask(_home(home), run, Asked.of(task, template, candidate))
    if json:
        emit_json(found)
    else:
        console.print(answer_table(found))
        console.print(found["note"], markup=False)
    if found["missing"] or found["refused"]:
        raise typer.Exit(DEGRADED)


@app.command()
def renew(
    days: Annotated[int, typer.Option(min=1, help="Validity.")] = 397,
    home: HomeFolder = _HOME,
    json: Json = False,
) -> None:
    """Issue the server certificate anew and let running services take it up; a run goes on."""
    from server.coordinator.services import reload_certificate
    from server.coordinator.setup import renew as issue

    here = _home(home)
    mark = issue(here, days)
    _show({"certificate": mark, "reloaded": reload_certificate(here)}, json)


@app.command()
def doctor(home: HomeFolder = _HOME, json: Json = False) -> None:
    """Check secrets, certificates, proxy, services, health, audit log and disk."""
    from modaltune.doctor.command import show
    from modaltune.doctor.finding import run_checks
    from server.coordinator.doctor import CHECKS

    here = _home(home)
    here.settings()
    show(f"coordinator {here.folder}", run_checks(CHECKS, here), json)


@audit.command()
def verify(home: HomeFolder = _HOME, json: Json = False) -> None:
    """Check every line of the audit log: nothing changed, removed or reordered."""
    from modaltune.trust.show import show_audit

    here = _home(home)
    here.settings()
    show_audit(here.audit, here.public_key.read_text(encoding="ascii"), json)


def main() -> None:
    """Entry point."""
    run_app(app)

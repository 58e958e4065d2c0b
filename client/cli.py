"""modaltune-client: the hospital's commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from client import network
from client.home import Home
from modaltune.console import console, emit_json, run_app
from modaltune.doctor.command import Json, SiteFolder, StudyFile, examine, show, title
from modaltune.doctor.finding import run_checks
from modaltune.errors import ConfigError
from modaltune.federation.study import Study
from modaltune.storage import canonical_json, digest_text

if TYPE_CHECKING:
    from client.disclosure import Disclosure

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
audit = typer.Typer(no_args_is_help=True, help="The hospital's audit log.")
app.add_typer(audit, name="audit")

HomeFolder = Annotated[
    Path | None, typer.Option("--home", help="Home folder; else $MODALTUNE_CLIENT_HOME or ~/.modaltune/client.")
]
StudyToRead = Annotated[Path, typer.Argument(metavar="STUDY", help="study.toml or study.json")]


@app.callback()
def _commands() -> None:
    """Commands of a hospital."""


@app.command()
def init(
    invitation: Annotated[Path, typer.Option(help="SITE.invite, as the coordinator sent it.")],
    site_folder: Annotated[Path, typer.Option(help="Site folder with site.toml.")],
    home: HomeFolder = None,
    out: Annotated[Path, typer.Option(help="Folder that receives SITE.pub.")] = Path(),
    app_user: Annotated[str, typer.Option(help="Account that is to run the client app when root starts it.")] = "",
    json: Json = False,
) -> None:
    """Make this hospital's keys and settings, and SITE.pub to hand to the coordinator."""
    from client.enrol import enrol
    from modaltune.invitation import Invitation

    here, invited = Home.find(home), Invitation.load(invitation)
    marks = invited.fingerprints()
    mark = enrol(here, invited, site_folder, out, app_user)
    found = {"home": str(here.folder), "public key": str(out / f"{invited.site}.pub"), "fingerprint": mark}
    _say(found | marks, json)
    if not json:
        console.print(
            "Send the public key to the coordinator, read its fingerprint out on the telephone, and compare those of"
            " the authority and of the coordinator's key with what the invite command there printed."
        )


@app.command()
def check(
    study: StudyToRead,
    site: Annotated[Path | None, typer.Option(help="Site folder; else that of the home folder.")] = None,
    home: HomeFolder = None,
    json: Json = False,
) -> None:
    """Validate this hospital's data against a study and print what would leave, before anything does."""
    from client.bundle import installed_bundle
    from client.disclosure import disclosure
    from client.runtime import Site

    asked = Study.load(study)
    found = disclosure(Site(site or Home.find(home).settings().site_folder, asked))
    bundle = installed_bundle()
    if json:
        emit_json(found.as_document() | {"bundle": bundle})
    else:
        _show_disclosure(asked.name, found, bundle)


@app.command()
def approve(
    study: StudyToRead,
    bundle: Annotated[str | None, typer.Option(help="SHA-256 of another bundle than the installed one.")] = None,
    new_split: Annotated[
        bool, typer.Option("--new-split", help="Accept cases in another split than when it was approved before.")
    ] = False,
    home: HomeFolder = None,
    json: Json = False,
) -> None:
    """Check a study, then let it run here, with the bundle that is installed here."""
    from client.approvals import Approval, Approvals
    from client.bundle import installed_bundle
    from client.disclosure import disclosure, embed_labels
    from client.runtime import Site
    from client.splits import SplitJournal

    here, asked = Home.find(home), Study.load(study)
    site = Site(here.settings().site_folder, asked)
    disclosure(site)
    with here.app_cache():
        embed_labels(asked)
    approval = Approval.of(site, _bundle(bundle) or installed_bundle())
    journal = SplitJournal(here)
    splits, moved = journal.merged(asked.digest, site.cohort.cases["split"], new_split=new_split)
    facts: dict[str, str | int] = {"study": asked.digest, "bundle": approval.bundle, "by": approval.by}
    facts |= {"splits": digest_text(canonical_json(splits)), **({"moved": moved} if new_split else {})}
    here.open_audit().append("approve", **facts)
    journal.write(asked.digest, splits)
    Approvals(here.approvals).add(approval)  # last: no approval that the log does not know
    _say({"approved": asked.name, **facts}, json)


@app.command()
def withdraw(
    study: Annotated[str, typer.Argument(help="Study file, or the beginning of a digest.")],
    home: HomeFolder = None,
    json: Json = False,
) -> None:
    """Take an approval back; it counts from the next message on."""
    from client.approvals import Approvals

    here = Home.find(home)
    digest = Study.load(Path(study)).digest if Path(study).suffix in (".toml", ".json") else study
    approvals = Approvals(here.approvals)
    digest = approvals.known(digest)
    here.open_audit().append("withdraw", study=digest)
    approvals.withdraw(digest)
    _say({"withdrawn": digest}, json)


@app.command()
def start(
    home: HomeFolder = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, for systemd and containers.")] = False,
) -> None:
    """Start the daemon and the client app; they are kept running and connect for as long as it takes."""
    from client.services import start_services

    start_services(Home.find(home), in_foreground=foreground)


@app.command()
def stop(home: HomeFolder = None) -> None:
    """Stop the daemon and the client app."""
    from client.services import stop_services

    if not stop_services(Home.find(home)):
        console.print("nothing was running")


@app.command()
def pause(home: HomeFolder = None) -> None:
    """Leave the coordinator's messages where they are, from the next one on; the daemon keeps running."""
    here = Home.find(home)
    here.settings()
    here.open_audit().append("pause")
    here.paused_file.touch()


@app.command()
def resume(home: HomeFolder = None) -> None:
    """Answer messages again."""
    here = Home.find(home)
    here.settings()
    here.open_audit().append("resume")
    here.paused_file.unlink(missing_ok=True)


@app.command()
def status(home: HomeFolder = None, json: Json = False) -> None:
    """What runs, when the coordinator was last reached, what is approved, what has been used of the limits."""
    from client.overview import overview

    found = overview(Home.find(home), time.time())
    if json:
        emit_json(found)
        return
    table = Table("", "", title=f"Site {found['site']}", show_header=False)
    for name, value in found.items():
        table.add_row(name, Text(_text(value)))
    console.print(table)


@audit.command()
def verify(home: HomeFolder = None, json: Json = False) -> None:
    """Check every line of the audit log: one that was changed, removed or reordered is named."""
    from modaltune.trust.keys import read_public
    from modaltune.trust.show import show_audit

    here = Home.find(home)
    if not here.audit_public.is_file():
        here.settings()  # says what to do where there is no site
    show_audit(here.audit, read_public(here.audit_public), json)


@app.command()
def doctor(
    site: SiteFolder = None,
    study: StudyFile = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Check the way to it; else to that of the home folder.")
    ] = None,
    root_certificates: Annotated[
        Path | None,
        typer.Option(help="PEM file that the coordinator gave out; else that of the home folder, for its coordinator."),
    ] = None,
    home: HomeFolder = None,
    json: Json = False,
) -> None:
    """The checks of modaltune doctor, and those of the network: name, port, certificate, clock, health."""
    here = Home.find(home)
    if coordinator is None and (home is not None or here.enrolled):
        coordinator, root_certificates = here.settings().coordinator, root_certificates or here.authority
    there = None if coordinator is None else network.Coordinator(coordinator, root_certificates)
    findings = examine(site, study)
    if there is not None:
        findings += run_checks(network.CHECKS, there)
    show(title(site), findings, json)


def _bundle(given: str | None) -> str | None:
    if given is not None and (len(given) != 64 or set(given) - set("0123456789abcdef")):
        raise ConfigError("--bundle: expected a SHA-256, 64 hexadecimal digits")
    return given


def _say(values: dict[str, Any], json: bool) -> None:
    if json:
        emit_json(values)
        return
    for name, value in values.items():
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {entry}" for name, entry in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _show_disclosure(name: str, found: Disclosure, bundle: str) -> None:
    table = Table("What would leave", "Content", title=f"Study {name}, digest {found.digest[:12]}", show_lines=True)
    for what, value in found.as_document().items():
        if what not in ("training", "statistics"):
            table.add_row(what, Text(_text(value)))
    console.print(table)
    for what, entries in (("statistics, once", found.statistics), ("training, in each round", found.training)):
        arrays = Table("Array", "Type", "Shape", "Bytes", title=f"{what}: at most {len(entries)} arrays")
        for entry in entries:
            arrays.add_row(Text(entry.name), entry.type, Text(str(list(entry.shape))), str(entry.bytes))
        console.print(arrays)
    console.print("Nothing else leaves: no frozen weights, no features, no row of a table, no identifier.")
    console.print(f"bundle installed here: {bundle}", soft_wrap=True)
    if found.device == "cpu":
        console.print("warning: training will run on the CPU, which takes far longer on whole slides", style="yellow")


def main() -> None:
    """Entry point."""
    run_app(app)

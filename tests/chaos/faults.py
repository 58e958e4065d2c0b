"""Faults: a process is killed, the network is cut, a disk is full, a clock is wrong, in each phase of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from modaltune.errors import RunFailed
from server.coordinator.runs import Run, resume_run
from tests.chaos.case import Case, Seen, Unable, require
from tests.chaos.stack import SITES, Stack, State, filled, stopped, until

Act = Callable[[Stack, Run], object]
CUT_SECONDS, FULL_SECONDS = 60.0, 90.0
SAME = "completes with the weights of an undisturbed run"
AGAIN = "stops with one line that names resume, which completes with the same weights"
FAKETIME = "/usr/lib/*/faketime/libfaketime.so.1"

PHASES: dict[str, Callable[[Run], bool]] = {
    "beginning": lambda run: run.status["phase"] in ("capability", "preprocess"),
    "training": lambda run: run.status["phase"] == "train" and run.status["round"] == 2,
    "evaluation": lambda run: any((row["phase"], row["round"]) == ("train", 2) for row in run.rounds()),
}
KILLS = (
    ("serverapp", None, AGAIN),
    ("superlink", None, SAME),
    ("superexec", None, f"{SAME}, or {AGAIN}"),  # it takes the ServerApp that it started with it
    ("nginx", None, SAME),
    ("supernode", "H2", SAME),
    ("clientapp", "H2", SAME),
)


def disturbed(stack: Stack, name: str, phase: str, act: Act, may_lose: str = "") -> Seen:
    """Run the study, disturb it in a phase, resume it if it stops; compare the final weights."""
    expected, run = stack.weights, stack.submit(name)
    until(lambda: PHASES[phase](run), f"the phase {phase} never came")
    act(stack, run)
    since, exchanges, told = time.monotonic(), list[float](), ""
    before = len(run.rounds())

    def say(row: State) -> None:
        if row["status"] == "OK" and len(run.rounds()) > before:
            exchanges.append(time.monotonic())

    try:
        status = stack.follow(run, say)
    except RunFailed as stop:
        require(f"modaltune-server resume {run.name}" in str(stop), f"stopped without a way to go on: {stop}")
        told, before = "stopped with one line, resumed, ", 0
        status = stack.follow(resume_run(stack.server, run.name), say)
    if status["status"] == "DEGRADED" and may_lose:
        require(all(may_lose in {*row["missing"], *row["refused"]} for row in _degraded(run)), _trouble(run))
        return Seen(f"{told}DEGRADED: {_trouble(run)}", (exchanges or [time.monotonic()])[0] - since)
    require(status["status"] == "OK", f"{told}{status['status']}: {_trouble(run)}")
    require(status["weights"] == expected, f"{told}completed with other weights")
    return Seen(f"{told}completed with the same weights", (exchanges or [time.monotonic()])[0] - since)


def _degraded(run: Run) -> list[State]:
    return [row for row in run.rounds() if row["status"] == "DEGRADED"]


def _trouble(run: Run) -> str:
    return "; ".join(
        f"{row['phase']} {row['round']} without {row['missing'] + [f'{k} ({v})' for k, v in row['refused'].items()]}"
        for row in _degraded(run)
    )


def _killing(who: str, site: str | None, phase: str, expected: str) -> Case:
    def run(stack: Stack) -> Seen:
        return disturbed(stack, who, phase, lambda *_: stack.kill(who, site))

    return Case(name=f"kill-{who}-{phase}", kind="fault", expected=expected, run=run)


def cut_network(stack: Stack) -> Seen:
    """Nothing passes the proxy for a minute, and no connection is closed."""

    def cut(*_: object) -> None:
        proxy = stack.process("nginx")
        assert proxy is not None
        with stopped(proxy):
            time.sleep(CUT_SECONDS)

    return disturbed(stack, "network", "training", cut)


def silent_site(stack: Stack) -> Seen:
    """One hospital's daemon stands still for a minute, as on a machine that was suspended."""

    def suspend(*_: object) -> None:
        daemon = stack.process("supernode", "H2")
        assert daemon is not None
        with stopped(daemon):
            time.sleep(CUT_SECONDS)

    return disturbed(stack, "suspended", "training", suspend)


def full_disk(owner: str) -> Callable[[Stack], Seen]:
    """The disk of the coordinator (``s``) or of a hospital is full for a while."""

    def run(stack: Stack) -> Seen:
        folder = stack.folder / owner
        if folder not in stack.mounted:
            raise Unable("a small disk cannot be mounted here; it needs an administrator")
        with ExitStack() as full:

            def fill(_: Stack, run: Run) -> None:
                full.enter_context(filled(folder))
                time.sleep(FULL_SECONDS)
                full.close()

            return disturbed(stack, f"disk-{owner}", "training", fill, may_lose=owner)

    return run


def wrong_clock(offset: str) -> Callable[[Stack], Seen]:
    """A hospital whose clock is wrong is missing by name; once it is set right, the run goes on."""

    def run(stack: Stack) -> Seen:
        library = next((str(path) for path in sorted(Path("/").glob(FAKETIME[1:]))), None)
        if library is None:
            raise Unable("libfaketime is not installed: apt install faketime")
        study = stack.study.model_copy(update={"quorum": 2, "deadline_seconds": 120.0, "attempts": 1})
        for site in SITES:
            stack.approve(site, study)
        stack.stop("H2")
        try:
            stack.start("H2", LD_PRELOAD=library, FAKETIME=offset, FAKETIME_DONT_FAKE_MONOTONIC="1")
            run = stack.submit("clock", study)
            try:
                status = stack.follow(run)
                raise AssertionError(f"the wrong clock was not noticed: {status['status']}")
            except RunFailed as stop:
                require("H2: no reply" in str(stop), str(stop))
        finally:
            stack.stop("H2")
            stack.start("H2")
        since = time.monotonic()
        stack.node("H2")
        status = stack.follow(resume_run(stack.server, run.name))
        require(status["status"] == "OK" and status["weights"], f"{status}")
        return Seen("stopped: H2 named as missing; clock set right and resumed: OK", time.monotonic() - since)

    return run


def cases() -> Iterator[Case]:
    """The table's first part."""
    for phase in ("training", "evaluation", "beginning"):
        for who, site, expected in KILLS:
            yield _killing(who, site, phase, expected)
    yield Case(name="network-cut", kind="fault", expected=SAME, run=cut_network)
    yield Case(name="site-suspended", kind="fault", expected=SAME, run=silent_site)
    yield Case(name="disk-full-server", kind="fault", expected=f"{SAME}, or {AGAIN}", run=full_disk("s"))
    yield Case(name="disk-full-site", kind="fault", expected=f"{SAME}, or DEGRADED with its name", run=full_disk("H2"))
    named = "the run stops with one line that names the site; with the clock set right, resume completes"
    yield Case(name="clock-ahead", kind="fault", expected=named, run=wrong_clock("+600"))
    yield Case(name="clock-behind", kind="fault", expected=named, run=wrong_clock("-600"))
